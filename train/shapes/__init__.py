"""The built-in data set `shapes`: images drawn from a seed, with their annotations in COCO format."""

from .dataset import Settings, generate, make_image

__all__ = ["Settings", "generate", "make_image"]
