"""Data sets in COCO's format and their scores."""

from .dataset import CocoDataset, FileNames, dataset_of, load_coco, load_coco_and_truth
from .format import CocoError, Problems
from .metrics import CocoFigures, checked_results, evaluate, read_results, results_list, to_results, truth_of
from .scoring import FIGURE_NAMES, Truth

__all__ = [
    "FIGURE_NAMES",
    "CocoDataset",
    "CocoError",
    "CocoFigures",
    "FileNames",
    "Problems",
    "Truth",
    "checked_results",
    "dataset_of",
    "evaluate",
    "load_coco",
    "load_coco_and_truth",
    "read_results",
    "results_list",
    "to_results",
    "truth_of",
]
