"""Deployed ONNX files as data: reading them, the network inside, its precision and sums, sessions on parts of it."""
