"""The training loop and what it needs: optimizer, checkpoints, process groups, evaluation, logs."""
