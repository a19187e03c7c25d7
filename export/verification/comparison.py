"""A comparison of a reference with a model file: both sides, and all checks on a batch.

Free of torch. The reference is a float32 file in `conversion.py`, and a checkpoint in `checkpoint.py`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import onnx

from runtime.backends.onnx_file import OUTPUT_NAMES, check_file
from runtime.backends.options import BackendOptions
from runtime.backends.ort.backend import OrtBackend
from runtime.command_names import TO_ONNX
from runtime.detections import Detections, RawOutputs, postprocess
from runtime.errors import UserError
from runtime.manifest import Manifest
from runtime.temporaries import scratch_folder

from ..onnx_model.emulation import emulate, needs_emulation
from ..onnx_model.file import INPUT_NAMES, expose_values, graph_sha256
from ..onnx_model.network import dense_map_names
from ..onnx_model.precision import count_convolutions, count_wrong_convolutions, read_quantization_note
from ..onnx_model.saturation import LARGEST_SUM, largest_sums
from ..onnx_model.session import open_session
from .checks import CANDIDATES, DETECTIONS, KERNELS, NETWORK, PRECISION, RERUN, ROWS, SATURATES, SUMS, UNTRAINED, Check
from .images import Case, make_cases, synthetic_images
from .matching import (
    EXACT,
    MatchTolerance,
    count_differing_rows,
    count_unmatched,
    greedy_nms,
    max_relative_error,
    relative_rms_error,
)
from .ranges import RangeErrors
from .tolerance import TOLERANCES, Tolerance, tolerance_of

if TYPE_CHECKING:
    import onnxruntime

# Limit of |torch − ONNX| / (1 + |torch|) for a dense value. Sums in another order give about 1e-5 in a ResNet-50, and
# up to 2e-4 where GroupNorm sums over the 10⁵ values of the finest map of a large canvas.
DENSE_LIMIT = 5e-4
# Fraction of candidates without a match. Near-ties change rank, and a score near a threshold may fall either way.
SET_LIMIT = 0.01
FEWEST_ROWS = 50  # that a fraction is taken of


class VerifyError(UserError):
    """A file that can't be compared with this reference."""


class Comparison(NamedTuple):
    """A reference and a model file, opened to be compared."""

    reference: Callable[[Case], Dense]  # the reference's dense maps of a batch
    postprocess: Callable[[Case, Dense], list[Detections]]  # the reference's candidates of any dense maps
    file: ModelFile
    emulation: onnxruntime.InferenceSession  # of the file, with the dense maps as outputs
    dense_names: list[str]
    file_checks: list[Check]  # that need no images
    ranges: RangeErrors | None  # of an 8-bit conversion
    tolerance: Tolerance


Dense = list[np.ndarray]  # float32, in the order of `dense_map_names`


class ModelFile(NamedTuple):
    """A model file, opened to be compared."""

    path: Path
    model: onnx.ModelProto
    manifest: Manifest
    target: str | None  # of a quantized file
    backend: OrtBackend  # of the file, or of its emulation where a CPU doesn't compute what the file says
    is_emulated: bool


def open_model_file(path: Path) -> ModelFile:
    """Open a model file to compare. Raises UserError.

    A file is emulated where this CPU's kernels compute something else (`needs_emulation`), so that a comparison has the
    same result on every machine.
    """
    check_file(path)  # that the graph is the exported one, before another is made of it
    try:
        model = onnx.load(path)
    except Exception:  # the backend's error says what is wrong with the file
        OrtBackend(path)
        raise
    note = read_quantization_note(model)
    target = None if note is None else note.target
    if is_emulated := needs_emulation(model):
        with scratch_folder() as folder:
            stand_in = folder / path.name
            stand_in.write_bytes(emulate(model).SerializeToString())
            backend = OrtBackend(stand_in, BackendOptions(backend="cpu", allow_saturation=True))
    else:
        backend = OrtBackend(path)  # raises for a foreign file, and where ONNX Runtime isn't installed
    manifest = dataclasses.replace(backend.manifest, graph_sha256=graph_sha256(model))
    return ModelFile(path, model, manifest, target, backend, is_emulated)


def make_comparison(
    reference: Callable[[Case], Dense], postprocess: Callable[[Case, Dense], list[Detections]], file: ModelFile
) -> Comparison:
    """A comparison of both sides with the checks that need no images. Raises VerifyError for a rewritten file."""
    model, manifest = file.model, file.manifest
    names = dense_map_names(model)
    emulation = expose_values(emulate(model), names) if names else None
    if emulation is None:
        raise VerifyError(
            f"{file.path}: the dense maps (class_logits_0, …) are not in the graph under their names; another tool has "
            f"rewritten it. Export the checkpoint again: {TO_ONNX} CHECKPOINT"
        )
    wrong = count_wrong_convolutions(model, manifest.precision)
    checks = [Check("file", PRECISION, count_convolutions(model).total(), wrong, 0)]
    if file.target == "cpu" or manifest.sums_fit_16_bits:
        checks.append(check_sums(model))
    tolerance = tolerance_of(manifest.precision, file.target)
    return Comparison(reference, postprocess, file, open_session(emulation), names, checks, None, tolerance)


def check_sums(model: onnx.ModelProto) -> Check:
    """Passes where no sum of two 8-bit products can saturate; the detail names the worst convolution."""
    sums = largest_sums(model)
    worst = max(sums, key=lambda name: sums[name], default="")
    return Check("file", SUMS, len(sums), sums.get(worst, 0), LARGEST_SUM, f"{worst}: {SATURATES}")


def compare_images(comparison: Comparison, images: Sequence[np.ndarray]) -> list[Check]:
    """All checks, on images (uint8 [h, w, 3] RGB, any sizes) or synthetic ones. Raises VerifyError."""
    manifest, path = comparison.file.manifest, comparison.file.path
    compared = (compare_case(comparison, case) for case in make_cases(manifest, require_images(images, manifest, path)))
    return [*comparison.file_checks, *(check for checks in compared for check in checks)]


def require_images(images: Sequence[np.ndarray], manifest: Manifest, path: Path) -> Sequence[np.ndarray]:
    """The images, or synthetic ones where there are none. Raises VerifyError where ranges need real images."""
    if not images and manifest.precision in ("int8", "fp8"):
        raise VerifyError(
            f"{path} is {manifest.precision}: its ranges fit images like those that it was calibrated on; give "
            "--images DIR, a folder of such images"
        )
    return images or synthetic_images()


_CANDIDATES = ["candidate_boxes", "candidate_scores", "candidate_classes"]


def compare_case(comparison: Comparison, case: Case) -> list[Check]:
    """The checks of both sides on one batch."""
    limits, tolerance = comparison.file.manifest.thresholds, comparison.tolerance
    # The file runs first: its error is the clearest where it can't run.
    raw = comparison.file.backend.infer(case.images, case.image_sizes, all_candidates=True)
    dense = comparison.reference(case)
    theirs, emulation = _run_emulation(comparison, case)
    checks = [comparison.ranges.check(case)] if comparison.ranges is not None else []
    checks += _compare_network(comparison, case, dense, theirs)
    again = comparison.postprocess(case, theirs)
    checks.append(_sets(case, CANDIDATES, again, candidates_per_image(emulation), EXACT, SET_LIMIT))

    rerun = dataclasses.replace(raw, nms_exact=np.zeros_like(raw.nms_exact))
    greedy = [
        greedy_nms(image, limits.nms_iou, limits.detections, limits.box_growth) for image in candidates_per_image(raw)
    ]
    for quantity, rows in ((ROWS, postprocess(raw, limits)), (RERUN, postprocess(rerun, limits))):
        differ = sum(count_differing_rows(a, b) for a, b in zip(greedy, rows, strict=True))
        checks.append(Check(case.name, quantity, sum(map(len, greedy)), differ, 0))
    expected = [
        greedy_nms(image, limits.nms_iou, limits.detections, limits.box_growth)
        for image in comparison.postprocess(case, dense)
    ]
    found = postprocess(raw, limits)
    if comparison.file.manifest.precision == "int8" and not comparison.file.is_emulated:
        kernels = _compare_detections(comparison, case, KERNELS, postprocess(emulation, limits), found)
        checks.append(dataclasses.replace(kernels, detail=SATURATES))
    checks.append(_compare_detections(comparison, case, DETECTIONS, expected, found))
    if comparison.ranges is not None and _spread(expected) < tolerance.same.score:
        upset = (*NETWORK.values(), DETECTIONS)
        checks = [dataclasses.replace(c, detail=UNTRAINED) if c.quantity in upset else c for c in checks]
    return checks


def _compare_detections(
    comparison: Comparison, case: Case, quantity: str, expected: list[Detections], found: list[Detections]
) -> Check:
    most, tolerance = comparison.file.manifest.thresholds.detections, comparison.tolerance
    floors = [  # in a full list tiny changes of score decide which detection is the last
        max(
            [tolerance.score, *(float(x.scores[-1]) + tolerance.same.score for x in rows if len(x) == most)],
        )
        for rows in zip(expected, found, strict=True)
    ]
    return _sets(case, quantity, expected, found, tolerance.same, tolerance.unmatched, floors)


def _spread(detections: list[Detections]) -> float:
    """The largest difference between the best and the least score of an image; 0 where nothing is found."""
    return max((float(rows.scores[0] - rows.scores[-1]) for rows in detections if len(rows)), default=0.0)


def _run_emulation(comparison: Comparison, case: Case) -> tuple[Dense, RawOutputs]:
    """The emulation's dense maps and outputs."""
    feed = dict(zip(INPUT_NAMES, (case.images, case.image_sizes), strict=True))
    found = comparison.emulation.run([*OUTPUT_NAMES, *comparison.dense_names], feed)
    contract = len(OUTPUT_NAMES)
    return found[contract:], RawOutputs(*found[:contract])


def _compare_network(comparison: Comparison, case: Case, dense: Dense, theirs: Dense) -> list[Check]:
    checks = []
    exact = comparison.tolerance is TOLERANCES["fp32"]
    for kind, title in NETWORK.items():
        maps = [
            (a, b) for name, a, b in zip(comparison.dense_names, dense, theirs, strict=True) if name.startswith(kind)
        ]
        if not maps:  # a head without centerness
            continue
        worst = max(max_relative_error(a, b) for a, b in maps) if exact else relative_rms_error(maps)
        limit = DENSE_LIMIT if exact else comparison.tolerance.dense
        checks.append(Check(case.name, title, sum(a.size for a, _ in maps), worst, limit))
    return checks


def _sets(
    case: Case,
    quantity: str,
    expected: list[Detections],
    given: list[Detections],
    same: MatchTolerance,
    limit: float,
    floors: Sequence[float] | None = None,
) -> Check:
    """Fraction of rows without a match on the other side, of the rows with at least the score of their image's floor.

    One row is always forgiven, for a score near a threshold. The fraction is taken of at least FEWEST_ROWS rows,
    because a single row is too large a part of a few.
    """
    alone, total = 0, 0
    for a, b, floor in zip(expected, given, floors or [0.0] * len(expected), strict=True):
        for rows, others in ((_above(a, floor), b), (_above(b, floor), a)):
            total += len(rows)
            alone += count_unmatched(rows, others, same)
    return Check(case.name, quantity, total, max(alone - 1, 0) / max(total, FEWEST_ROWS), limit)


def _above(rows: Detections, score: float) -> Detections:
    kept = rows.scores >= score
    return Detections(rows.boxes[kept], rows.scores[kept], rows.classes[kept])


def candidates_per_image(raw: RawOutputs) -> list[Detections]:
    """The candidates of each image."""
    return drop_padding(raw.candidate_boxes, raw.candidate_scores, raw.candidate_classes)


def drop_padding(boxes: np.ndarray, scores: np.ndarray, classes: np.ndarray) -> list[Detections]:
    """The rows of each image with a score above 0; the other rows are padding."""
    return [Detections(b[s > 0], s[s > 0], c[s > 0]) for b, s, c in zip(boxes, scores, classes, strict=True)]
