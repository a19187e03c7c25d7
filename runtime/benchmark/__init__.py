"""The benchmark: measures how fast deployed models run, stage by stage and through the pipeline."""
