"""Both sides of a comparison, the reference and a file, and everything that is compared on a batch.

Free of torch. The reference is a float32 file in `conversion.py`, and a checkpoint in `checkpoint.py`.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import onnx

from runtime.backends.onnx_file import OUTPUT_NAMES
from runtime.backends.options import BackendOptions
from runtime.backends.ort.backend import OrtBackend
from runtime.detections import Detections, RawOutputs, postprocess
from runtime.errors import UserError
from runtime.manifest import Manifest

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

# Of a dense value, |torch − ONNX| / (1 + |torch|). Float32 sums in another order give about 1e-5 in a ResNet-50, and up
# to 2e-4 where GroupNorm sums over the 10⁵ values of a large canvas' finest map.
DENSE_LIMIT = 5e-4
# Fraction of candidates without a partner. Near-ties change rank, and a score beside a threshold may fall either way.
SET_LIMIT = 0.01
FEWEST_ROWS = 50


class VerifyError(UserError):
    """A model file that can't be compared with this checkpoint."""


class Comparison(NamedTuple):
    """Both sides of a comparison."""

    reference: Callable[[Case], Dense]
    postprocess: Callable[[Case, Dense], list[Detections]]  # the reference's candidates of any dense maps
    file: ModelFile
    emulation: onnxruntime.InferenceSession  # its emulation, with its dense maps as outputs
    dense_names: list[str]
    file_checks: list[Check]  # by itself
    ranges: RangeErrors | None
    tolerance: Tolerance


Dense = list[np.ndarray]  # in the order of `dense_maps`


class ModelFile(NamedTuple):
    """A file to compare."""

    path: Path
    model: onnx.ModelProto
    manifest: Manifest
    target: str | None  # what an 8-bit file is for
    backend: OrtBackend  # as it is deployed, or where a CPU doesn't compute what it says, its emulation
    is_emulated: bool


def open_model_file(path: Path) -> ModelFile:
    """Open a file to compare. Raises UserError.

    Emulated is what no CPU's kernels compute (bfloat16), int8 for a GPU, whose kernels sum exactly, and int8 that
    saturates on this processor (`runtime.backends.saturation`): so the comparison gives the same on every machine.
    """
    try:
        model = onnx.load(path)
    except Exception:  # the backend says what is wrong with it
        OrtBackend(path)
        raise
    note = read_quantization_note(model)
    target = None if note is None else note.target
    if is_emulated := needs_emulation(model):
        with tempfile.TemporaryDirectory() as folder:
            stand_in = Path(folder) / path.name
            stand_in.write_bytes(emulate(model).SerializeToString())
            backend = OrtBackend(stand_in, BackendOptions(backend="cpu", allow_saturation=True))
    else:
        backend = OrtBackend(path)  # also says so where the file is foreign, or ONNX Runtime isn't installed
    if backend.manifest.graph_sha256 != graph_sha256(model):
        raise VerifyError(
            f"{path}: the graph was changed after its export (its SHA-256 is not the manifest's); "
            "export the checkpoint again: python -m export.to_onnx CHECKPOINT"
        )
    return ModelFile(path, model, backend.manifest, target, backend, is_emulated)


def make_comparison(
    reference: Callable[[Case], Dense], postprocess: Callable[[Case, Dense], list[Detections]], file: ModelFile
) -> Comparison:
    """The two sides, and the checks of the file by itself. Raises VerifyError."""
    model, manifest = file.model, file.manifest
    names = dense_map_names(model)
    visible = expose_values(emulate(model), names) if names else None
    if visible is None:
        raise VerifyError(
            f"{file.path}: the dense maps (class_logits_0, …) are not in the graph under their names; another tool has "
            "rewritten it. Export the checkpoint again: python -m export.to_onnx CHECKPOINT"
        )
    checks = [
        Check(
            "file", PRECISION, count_convolutions(model).total(), count_wrong_convolutions(model, manifest.precision), 0
        )
    ]
    if file.target == "cpu" or manifest.sums_fit_16_bits:
        checks.append(check_sums(model))
    tolerance = tolerance_of(manifest.precision, file.target)
    return Comparison(reference, postprocess, file, open_session(visible), names, checks, None, tolerance)


def check_sums(model: onnx.ModelProto) -> Check:
    """Passes where no sum of two 8-bit products can saturate; the detail names the worst convolution."""
    sums = largest_sums(model)
    worst = max(sums, key=lambda name: sums[name], default="")
    return Check("file", SUMS, len(sums), sums.get(worst, 0), LARGEST_SUM, f"{worst}: {SATURATES}")


def compare_images(comparison: Comparison, images: Sequence[np.ndarray]) -> list[Check]:
    """All comparisons, on these images (uint8 [h, w, 3] RGB, any sizes); without any on synthetic ones."""
    manifest, path = comparison.file.manifest, comparison.file.path
    compared = (compare_case(comparison, case) for case in make_cases(manifest, require_images(images, manifest, path)))
    return [*comparison.file_checks, *(check for checks in compared for check in checks)]


def require_images(images: Sequence[np.ndarray], manifest: Manifest, path: Path) -> Sequence[np.ndarray]:
    """The images, or synthetic ones where there are none; VerifyError where those are unlike the calibration's."""
    if not images and manifest.precision in ("int8", "fp8"):
        raise VerifyError(
            f"{path} is {manifest.precision}, its ranges fit images like those that it was calibrated on: give "
            "--images DIR, a folder of such"
        )
    return images or synthetic_images()


_CANDIDATES = ["candidate_boxes", "candidate_scores", "candidate_classes"]


def compare_case(comparison: Comparison, case: Case) -> list[Check]:
    """All comparisons on one batch."""
    limits, tolerance = comparison.file.manifest.thresholds, comparison.tolerance
    # First: it says what is wrong with a file that can't run.
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
    floors = [  # which is the last of 100 detections, tiny changes of score decide
        max(
            [tolerance.score, *(float(x.scores[-1]) + tolerance.same.score for x in rows if len(x) == most)],
        )
        for rows in zip(expected, found, strict=True)
    ]
    return _sets(case, quantity, expected, found, tolerance.same, tolerance.unmatched, floors)


def _spread(detections: list[Detections]) -> float:
    """How far apart an image's best and least scores lie, at most; 0 where nothing is found."""
    return max((float(rows.scores[0] - rows.scores[-1]) for rows in detections if len(rows)), default=0.0)


def _run_emulation(comparison: Comparison, case: Case) -> tuple[Dense, RawOutputs]:
    """The emulation's dense maps, and what it made of them."""
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
    """Fraction of rows of at least an image's score without a partner of any score.

    One is always forgiven, for a score beside a threshold; of few rows a single one is no share to judge by, so they
    count as FEWEST_ROWS.
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
    """Of each image the rows with a score: the others are padding."""
    return [Detections(b[s > 0], s[s > 0], c[s > 0]) for b, s, c in zip(boxes, scores, classes, strict=True)]
