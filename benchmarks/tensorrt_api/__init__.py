"""The names of TensorRT's real bindings, and the check that the code uses no other name."""
