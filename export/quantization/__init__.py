"""Other precisions of a deployed float32 file: calibration, QDQ, half precision, and mixed precision by AP."""
