"""torch to ONNX: the deployable graph with its NMS."""
