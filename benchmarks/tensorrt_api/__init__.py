"""The names and signatures of TensorRT's real bindings, and the check that the code uses them as they are."""
