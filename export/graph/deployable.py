"""The deployable graph: a trained detector with its postprocessing and NMS, from uint8 canvases to detections.

It holds the detector and calls the model's own functions, so what is exported is what was validated.
B images, H × W the canvas, C classes, K candidates, D detections.
"""

from __future__ import annotations

import copy
from typing import NamedTuple

from torch import Tensor, nn

from runtime.errors import UserError
from runtime.manifest import InputShapes, Thresholds
from train.geometry.anchors import strides
from train.model.batch_norm import fold_batch_norms
from train.model.deform import for_export
from train.model.detector import DenseOutputs, DetectorNetwork
from train.model.postprocess import CandidateLimit, Postprocess, select_candidates

from .nms import fixpoint_nms

TOPK_MAX = 3840  # the most that TensorRT's TopK ranks


class GraphOutputs(NamedTuple):
    """The outputs of the contract, under their names and in their order."""

    num_detections: Tensor  # int32 [B, 1]
    detection_boxes: Tensor  # float32 [B, D, 4] xyxy in canvas pixels, best score first
    detection_scores: Tensor  # float32 [B, D]
    detection_classes: Tensor  # int32 [B, D], unused rows −1
    nms_exact: Tensor  # int32 [B, 1]
    candidate_boxes: Tensor  # float32 [B, K, 4]
    candidate_scores: Tensor  # float32 [B, K]
    candidate_classes: Tensor  # int32 [B, K]


class DeployableGraph(nn.Module):
    """The deployable module: `images` uint8 [B, H, W, 3], `image_sizes` int32 [B, 2] → GraphOutputs, dense maps.

    `graph/checkpoint.py` makes it of a checkpoint. `limits` are `candidate_limits`.
    """

    def __init__(self, detector: DetectorNetwork, postprocess: Postprocess, limits: list[CandidateLimit]) -> None:
        super().__init__()
        self.detector = fold(detector)
        self._postprocess, self._limits = postprocess, limits

    def forward(self, images: Tensor, image_sizes: Tensor) -> tuple[GraphOutputs, DenseOutputs]:
        """Detections and candidates, and the dense maps too so that the exporter names them for `export.verify`."""
        dense = self.detector(images)
        boxes, scores, classes = select_candidates(dense, image_sizes, self._postprocess, self._limits)
        limits = self._postprocess.thresholds
        found = fixpoint_nms(boxes, scores, classes, limits.nms_iou, limits.detections, limits.box_growth)
        return GraphOutputs(*found, boxes, scores, classes), dense


def dense_names(levels: int, has_centerness: bool) -> list[str]:
    """Names of the dense maps inside the exported graph, in DenseOutputs' order."""
    kinds = [kind for kind in DenseOutputs._fields if kind != "centerness" or has_centerness]
    return [f"{kind}_{level}" for kind in kinds for level in range(levels)]


def fold(detector: DetectorNetwork) -> DetectorNetwork:
    """A copy for inference: batch norms folded into the convolutions before them, deformable convolutions portable.

    The exporter's own folding makes an invalid graph of a bf16 network. Raises ValueError for a batch norm that no
    convolution precedes.
    """
    folded = copy.deepcopy(detector).eval().requires_grad_(False)
    fold_batch_norms(folded)
    for_export(folded)
    if left := [name for name, module in folded.named_modules() if isinstance(module, nn.BatchNorm2d)]:
        raise ValueError(f"batch norms that no convolution precedes can't be folded: {', '.join(left)}")
    return folded


def candidate_limits(
    shapes: InputShapes, levels: int, scores_per_cell: int, thresholds: Thresholds
) -> list[CandidateLimit]:
    """How many candidates each level yields: a constant for all canvases, because TensorRT's TopK takes no other.

    A level with fewer scores on some canvas is padded. Raises UserError for more than TOPK_MAX.
    """
    if thresholds.candidates_per_level > TOPK_MAX:
        raise UserError(
            f"candidates_per_level is {thresholds.candidates_per_level}, TensorRT ranks at most {TOPK_MAX}: "
            "set thresholds.candidates_per_level to 1000, the usual number"
        )
    limits = []
    for stride in strides(levels):
        least = _cells(shapes.height_min, stride) * _cells(shapes.width_min, stride) * scores_per_cell
        most = _cells(shapes.height_max, stride) * _cells(shapes.width_max, stride) * scores_per_cell
        count = min(thresholds.candidates_per_level, most)
        limits.append(CandidateLimit(count, padded=least < count))
    return limits


def _cells(side: int, stride: int) -> int:
    return -(-side // stride)
