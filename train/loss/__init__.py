"""The training loss: the criterion, and its element-wise losses."""
