"""From torch to ONNX: the deployable module with its postprocessing and NMS, and the tracing of it."""
