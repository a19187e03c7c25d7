"""Published checkpoints of other implementations."""
