"""From a trained checkpoint to ONNX files and TensorRT engines, each verified against what it was made of.

`export.api` has the functions; `python -m export.to_onnx`, `quantize`, `to_trt` and `verify` are commands over them.
"""
