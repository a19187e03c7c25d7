"""What a detector's results show beyond COCO's metrics: intervals, curves, calibration, errors and changes."""
