"""Runs images through a model that a Triton Inference Server serves, written there by `export.to_triton`."""
