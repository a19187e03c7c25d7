"""Compares DeepStream's variant of a graph with the graph that it was made of: every number, bit by bit."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import onnx

from runtime.manifest import Manifest

from ..onnx_model.emulation import emulate, needs_emulation
from ..onnx_model.file import INPUT_NAMES
from ..onnx_model.forms import for_processor
from ..onnx_model.session import open_session
from ..verification.checks import DETECTIONS, Check
from ..verification.images import Case, make_cases, synthetic_images
from .contract import INPUT, LEAST_BOX_NUMBER, NET_SCALE_FACTOR, OFFSETS, OUTPUTS, PAD_VALUE

SIGNATURE = "interface: inputs and outputs unlike the parser's"
NUMBERS = "interface: numbers unlike the original graph's"


def verify_variant(
    original: onnx.ModelProto,
    variant: onnx.ModelProto,
    manifest: Manifest,
    images: Sequence[np.ndarray] = (),
    limits_yx: tuple[float, float] | None = None,
) -> list[Check]:
    """Compare both graphs in ONNX Runtime on the same canvases, padded with black as nvinfer pads them.

    The original runs in the form for GPUs, which the variant has. `manifest` and `limits_yx` are the variant's.
    `images` are uint8 [h, w, 3] RGB; by default synthetic ones. Where a CPU doesn't compute what the files say, both
    are emulated.
    """
    original = for_processor(original, manifest.thresholds, "gpu")
    if needs_emulation(original):
        original, variant = emulate(original), emulate(variant)
    theirs, ours = (open_session(model, keep_layout=True) for model in (original, variant))
    checks = [_signature(variant)]
    padded = dataclasses.replace(manifest.preprocess, pad_value=PAD_VALUE)
    for case in make_cases(dataclasses.replace(manifest, preprocess=padded), images or synthetic_images()):
        whole = np.tile(np.array(case.images.shape[1:3], np.int32), (len(case.images), 1))
        expected = theirs.run(list(OUTPUTS), dict(zip(INPUT_NAMES, (case.images, whole), strict=True)))
        given = ours.run(list(OUTPUTS), {INPUT: nvinfer_input(case.images)})
        checks += _numbers(case, parser_outputs(expected, limits_yx), given)
    return checks


def nvinfer_input(canvases: np.ndarray) -> np.ndarray:
    """The tensor float32 [B, 3, H, W] that nvinfer makes of canvases uint8 [B, H, W, 3] with these configurations."""
    scaled = np.float32(NET_SCALE_FACTOR) * (canvases.astype(np.float32) - np.array(OFFSETS, np.float32))
    return np.ascontiguousarray(scaled.transpose(0, 3, 1, 2))


def parser_outputs(outputs: Sequence[np.ndarray], limits_yx: tuple[float, float] | None = None) -> list[np.ndarray]:
    """A deployed graph's detections (count, boxes, scores, classes) as DeepStream's parser wants them."""
    count, boxes, scores, classes = outputs
    x1, y1, x2, y2 = (boxes[..., side] for side in range(4))
    turned = np.stack([y1, x1, y2, x2], axis=-1)
    if limits_yx is not None:
        turned = np.minimum(turned, np.array([*limits_yx, *limits_yx], np.float32))
    turned[classes < 0] = LEAST_BOX_NUMBER
    return [count, turned, scores, classes.astype(np.float32)]


def _signature(variant: onnx.ModelProto) -> Check:
    """Passes where the graph has one input, and the parser's outputs in the parser's order."""
    names = [value.name for value in variant.graph.input], [value.name for value in variant.graph.output]
    return Check("file", SIGNATURE, 1 + len(OUTPUTS), int(names != ([INPUT], list(OUTPUTS))), 0)


def _numbers(case: Case, expected: Sequence[np.ndarray], given: Sequence[np.ndarray]) -> list[Check]:
    unlike, details = 0, []
    for name, a, b in zip(OUTPUTS, expected, given, strict=True):
        if a.dtype != b.dtype or a.shape != b.shape:
            differ = a.size
        else:
            differ = int(np.count_nonzero(a.view(np.uint32) != b.view(np.uint32)))
        unlike += differ
        details += [f"{name}: {differ}"] if differ else []
    found = int(expected[0].sum())
    return [
        Check(case.name, NUMBERS, sum(array.size for array in expected), unlike, 0, ", ".join(details)),
        Check(case.name, DETECTIONS, found, unlike, 0),
    ]
