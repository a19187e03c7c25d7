"""Data sets as other tools lay them out (YOLO, Pascal VOC, CreateML), read into COCO's format."""

from .coco import find_image_folder
from .labeled import LabeledImage, LabeledObject, LabeledSet, LayoutError, as_coco, with_categories
from .source import COCO, LAYOUTS, Source, annotation_files, parse_source, read_source

__all__ = [
    "COCO",
    "LAYOUTS",
    "LabeledImage",
    "LabeledObject",
    "LabeledSet",
    "LayoutError",
    "Source",
    "annotation_files",
    "as_coco",
    "find_image_folder",
    "parse_source",
    "read_source",
    "with_categories",
]
