"""Data sets in COCO's format and their scores."""

from .dataset import CocoDataset, FileNames, load_coco, load_coco_with_truth, parse_dataset
from .format import CocoError, Problems
from .metrics import CocoMetrics, checked_results, parse_ground_truth, read_results, results_list, score, to_results
from .scoring import METRIC_NAMES, GroundTruth

__all__ = [
    "METRIC_NAMES",
    "CocoDataset",
    "CocoError",
    "CocoMetrics",
    "FileNames",
    "GroundTruth",
    "Problems",
    "checked_results",
    "load_coco",
    "load_coco_with_truth",
    "parse_dataset",
    "parse_ground_truth",
    "read_results",
    "results_list",
    "score",
    "to_results",
]
