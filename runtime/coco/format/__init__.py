"""Files in COCO's format, as tools write them: the one layer that reads and checks them."""

from .annotations import UNKNOWN_CATEGORY, UNKNOWN_IMAGE, Annotations
from .doubts import doubt_of_boxes
from .ids import NO_ID, IdTable
from .images import image_files
from .masks import mask_area, mask_box
from .reading import categories, normalised, read_coco_json
from .values import CocoError, Problems, is_finite, read_json, shown, some

__all__ = [
    "NO_ID",
    "UNKNOWN_CATEGORY",
    "UNKNOWN_IMAGE",
    "Annotations",
    "CocoError",
    "IdTable",
    "Problems",
    "categories",
    "doubt_of_boxes",
    "image_files",
    "is_finite",
    "mask_area",
    "mask_box",
    "normalised",
    "read_coco_json",
    "read_json",
    "shown",
    "some",
]
