"""Other precisions of a deployed file: calibration, QDQ, float16 and bfloat16, mixed."""
