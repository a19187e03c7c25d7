"""Files in COCO's format, as tools write them: the one layer that reads and checks them."""

from .annotations import Annotations, as_annotations
from .entries import categories
from .reading import read_coco_json
from .values import CocoError, Problems, is_finite, read_json

__all__ = [
    "Annotations",
    "CocoError",
    "Problems",
    "as_annotations",
    "categories",
    "is_finite",
    "read_coco_json",
    "read_json",
]
