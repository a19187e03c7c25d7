"""Data sets in COCO's format, detecting on them, and scoring with COCO's metrics."""

from .dataset import CocoDataset, FileNames, load_coco, load_coco_with_truth
from .format import CocoError, Problems
from .ground_truth import GroundTruth, load_ground_truth, parse_ground_truth
from .metrics import CocoMetrics, score
from .results import Results
from .results_files import load_results, parse_results
from .scoring import METRIC_NAMES

__all__ = [
    "METRIC_NAMES",
    "CocoDataset",
    "CocoError",
    "CocoMetrics",
    "FileNames",
    "GroundTruth",
    "Problems",
    "Results",
    "load_coco",
    "load_coco_with_truth",
    "load_ground_truth",
    "load_results",
    "parse_ground_truth",
    "parse_results",
    "score",
]
