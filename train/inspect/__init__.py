"""Says what is in a data set before training: classes, sizes beside the anchors, duplicates, leaks, faults."""
