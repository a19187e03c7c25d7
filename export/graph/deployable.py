"""The deployable graph as a torch module: a trained detector with its postprocessing, from canvases to candidates.

It holds the detector and calls the model's own functions, so what is exported is what was validated. NMS follows in
ONNX (`onnx_model/nms.py`), in a form for the processor that the file is for.
B images, H × W the canvas, C classes, K candidates.
"""

from __future__ import annotations

import copy
from typing import NamedTuple

from torch import Tensor, nn

from runtime.errors import UserError
from runtime.manifest import InputShapes, Thresholds
from train.geometry.anchors import Anchors, level_axes, pyramid_levels
from train.model.batch_norm import fold_batch_norms
from train.model.deform import for_export
from train.model.detector import DenseOutputs, DetectorNetwork
from train.model.postprocess import Canvases, Postprocess, select_candidates
from train.model.ranking import AnchorRange

TOPK_MAX = 3840  # the most that TensorRT's TopK ranks


class Candidates(NamedTuple):
    """The outputs of the traced graph, under the names that NMS reads."""

    candidate_boxes: Tensor  # float32 [B, K, 4] xyxy in canvas pixels
    candidate_scores: Tensor  # float32 [B, K]; 0: an unused row
    candidate_classes: Tensor  # int32 [B, K]


class DeployableGraph(nn.Module):
    """The deployable module: `images` uint8 [B, H, W, 3], `image_sizes` int32 [B, 2] → Candidates, dense maps.

    `graph/checkpoint.py` makes it of a checkpoint. `canvases` are `graph_canvases`.
    """

    def __init__(self, detector: DetectorNetwork, postprocess: Postprocess, canvases: Canvases) -> None:
        super().__init__()
        self.detector = fold(detector)
        self._postprocess, self._canvases = postprocess, canvases

    def forward(self, images: Tensor, image_sizes: Tensor) -> tuple[Candidates, DenseOutputs]:
        """Candidates, and the dense maps too so that the exporter names them for `export.verify`."""
        dense = self.detector(images)
        return Candidates(*select_candidates(dense, image_sizes, self._postprocess, self._canvases)), dense


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


def graph_canvases(shapes: InputShapes, levels: int, anchors: Anchors, thresholds: Thresholds) -> Canvases:
    """What postprocessing may take for granted in a graph of these shapes.

    A level yields the same number of candidates on every canvas, because TensorRT's TopK takes a constant. Raises
    UserError for more than TOPK_MAX.
    """
    if thresholds.candidates_per_level > TOPK_MAX:
        raise UserError(
            f"candidates_per_level is {thresholds.candidates_per_level}, TensorRT ranks at most {TOPK_MAX}: "
            "set thresholds.candidates_per_level to 1000, the usual number"
        )
    smallest, largest = (
        pyramid_levels(canvas, levels, anchors) for canvas in (shapes.smallest_canvas, shapes.largest_canvas)
    )
    ranges = [AnchorRange(low.anchors, high.anchors) for low, high in zip(smallest, largest, strict=True)]
    follows = anchors.whole_pixels and not shapes.has_one_canvas  # the grid isn't a part of the largest canvas' grid
    return Canvases(ranges, None if follows else [level_axes(level) for level in largest])
