"""What the stand-in's engines compute, in NumPy: the deployable graph's contract around a finder of red rectangles."""

from __future__ import annotations

import numpy as np

from runtime.detections import RawOutputs

ROWS = 4  # of detections
BLUE_IS_INEXACT = 200  # an image with a pixel this blue gets nms_exact 0, wrong rows, and candidates with a duplicate
INPUTS = {"images": np.uint8, "image_sizes": np.int32}
OUTPUTS = {
    "num_detections": np.int32,
    "detection_boxes": np.float32,
    "detection_scores": np.float32,
    "detection_classes": np.int32,
    "nms_exact": np.int32,
    "candidate_boxes": np.float32,
    "candidate_scores": np.float32,
    "candidate_classes": np.int32,
}


def shapes_of(batch: int, height: int, width: int) -> dict[str, tuple[int, ...]]:
    """Shapes of inputs and outputs. Few cells make few candidates, as in the real graph."""
    candidates = min(6, height * width // 1024)
    return {
        "images": (batch, height, width, 3),
        "image_sizes": (batch, 2),
        "num_detections": (batch, 1),
        "detection_boxes": (batch, ROWS, 4),
        "detection_scores": (batch, ROWS),
        "detection_classes": (batch, ROWS),
        "nms_exact": (batch, 1),
        "candidate_boxes": (batch, candidates, 4),
        "candidate_scores": (batch, candidates),
        "candidate_classes": (batch, candidates),
    }


def run(images: np.ndarray, image_sizes: np.ndarray) -> dict[str, np.ndarray]:
    """All outputs, candidates of exact images included."""
    shapes = shapes_of(*images.shape[:3])
    outputs = {name: np.zeros(shapes[name], dtype) for name, dtype in OUTPUTS.items()}
    outputs["detection_classes"].fill(-1)
    outputs["candidate_classes"].fill(-1)
    for index, (image, (height, width)) in enumerate(zip(images, image_sizes, strict=True)):
        shown = image[:height, :width]
        ys, xs = np.nonzero(shown[..., 0] > 200)
        is_exact = not (shown[..., 2] >= BLUE_IS_INEXACT).any()
        outputs["nms_exact"][index] = is_exact
        if not len(ys):
            continue
        box = (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)
        score = 0.5 + 0.25 * float(shown[ys[0], xs[0], 0]) / 255
        outputs["num_detections"][index] = 1 if is_exact else ROWS
        outputs["detection_boxes"][index, 0] = box
        outputs["detection_scores"][index, 0] = score if is_exact else 0.99
        outputs["detection_classes"][index, 0] = 0
        for row, (factor, kind) in enumerate(((0.5, 0), (1.0, 0), (0.25, 1))[: shapes["candidate_scores"][1]]):
            outputs["candidate_boxes"][index, row] = box
            outputs["candidate_scores"][index, row] = score * factor
            outputs["candidate_classes"][index, row] = kind
    return outputs


def expected(images: np.ndarray, image_sizes: np.ndarray, all_candidates: bool = False) -> RawOutputs:
    """What a backend returns: candidates of exact images are left out unless they are asked for."""
    outputs = run(images, image_sizes)
    if not all_candidates:
        is_exact = outputs["nms_exact"][:, 0] == 1
        outputs["candidate_boxes"][is_exact] = 0
        outputs["candidate_scores"][is_exact] = 0
        outputs["candidate_classes"][is_exact] = -1
    return RawOutputs(**outputs)
