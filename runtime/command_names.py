"""Commands as messages spell them: as modules, which run wherever the packages are installed."""

TO_ONNX = "python -m export.to_onnx"
QUANTIZE = "python -m export.quantize"
TO_TRT = "python -m export.to_trt"
DOCTOR = "python -m runtime.doctor"
