"""Says what is in a data set before training: classes, sizes beside the anchors, duplicates, leaks, faults."""

from .report import Report, inspect_data

__all__ = ["Report", "inspect_data"]
