"""Deployed ONNX files as data: the network inside, its precision, its sums, sessions on pieces of it."""
