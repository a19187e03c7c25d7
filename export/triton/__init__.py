"""Writes a model repository for the Triton Inference Server: configurations, the network, and the model in front."""
