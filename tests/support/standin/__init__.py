"""A strict stand-in for a GPU: the CUDA driver, both Python bindings to it, and TensorRT with the names of a version.

Work is queued per stream and runs late, in an adversarial order. What the order must not matter for is checked whatever
the order is: two accesses to the same memory that nothing orders are an error when the second is queued.
"""
