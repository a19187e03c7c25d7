"""ONNX Runtime: finding its libraries, opening a session, running it."""
