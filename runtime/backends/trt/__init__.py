"""Opens and runs engines of TensorRT and TensorRT for RTX."""
