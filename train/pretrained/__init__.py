"""Published checkpoints of other implementations: their catalogue, their download, and their conversion."""
