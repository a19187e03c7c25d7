"""How fast a deployed model runs, stage by stage and as a pipeline."""
