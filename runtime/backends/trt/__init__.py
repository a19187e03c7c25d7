"""TensorRT and TensorRT for RTX: opening an engine and running it."""
