"""Detecting with a model that a Triton Inference Server serves, and the model in front that the server itself runs."""

from .detector import TritonDetector

__all__ = ["TritonDetector"]
