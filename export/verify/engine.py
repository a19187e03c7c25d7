"""Is the engine the detector that was trained? On its GPU its numbers are compared; elsewhere what can be is checked.

Always: the hash of its bytes, its header against the description beside it, the checkpoint and the ONNX file that it
came from, and that file's numbers against the checkpoint. On a GPU that it fits: the precision of its convolutions, and
its detections against torch's and ONNX Runtime's. What could not be checked is said.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from runtime.backends import Backend, BackendError
from runtime.backends.engine_file import EngineManifest, read_engine
from runtime.backends.trt.backend import TrtBackend
from runtime.backends.trt.engine import import_tensorrt
from runtime.detections import Detections, RawOutputs
from runtime.files import sha256_file
from train.trainer.checkpoint import LoadedDetector
from train.trainer.evaluation import detector_manifest

from ..onnx_model.network import load_deployed
from ..onnx_model.precision import summary
from ..trt.inspector import convolutions_of, wrong_precision
from ..trt.library import find_device
from .checkpoint import open_pair, verify
from .checks import Check, print_report
from .compare import without_partner
from .engine_header import header_problems
from .images import Case, make_case
from .manifests import check_export
from .pair import VerifyError, compare, fitting_images
from .tolerance import Tolerance

ENGINE_CANDIDATES = "engine: candidates unlike ONNX Runtime's"


class Report(NamedTuple):
    """What a verification found, one line each."""

    checked: list[str]
    problems: list[str]
    unchecked: list[str]
    checks: list[Check]

    @property
    def passed(self) -> bool:
        return not self.problems and all(check.passed for check in self.checks)


def verify_engine(
    loaded: LoadedDetector,
    path: Path,
    images: Sequence[np.ndarray],
    onnx_path: Path | None = None,
    open_engine: Callable[[Path], Backend] = TrtBackend,
    why_not: Callable[[EngineManifest], str | None] | None = None,
) -> Report:
    """Verify an engine that was built of this checkpoint. `onnx_path` is looked for beside it unless given.

    `why_not` says why an engine can't be run here, or None. Raises UserError for an engine that was altered, that is of
    another checkpoint, or that doesn't fit the library and GPU here: before a byte of it is deserialized.
    """
    data, described = read_engine(path)
    _check_origin(described, loaded, path)
    report = Report(["the engine's SHA-256 is the one in its description"], [], [], [])
    _check_manifest(described, loaded, report)
    _check_header(data, described, report)
    source = onnx_path if onnx_path is not None else find_source(path, described)
    if source is not None:
        _check_source(source, described, report)
    else:
        report.unchecked.append(f"the ONNX file that it was built of: not beside it ({described.onnx_sha256[:12]}…)")
    reason = (why_not or reason_not_to_run)(described)
    if reason is not None:
        report.unchecked.append(f"its detections, and the precision of its layers: {reason}")
        if source is not None:
            _check_numbers_of_source(loaded, source, described, images, report)
        return report
    backend = open_engine(path)
    try:
        report.checked.append(f"it runs: {backend.description}")
        _check_precision(data, described, report)
        if source is None:
            report.unchecked.append("its detections: the ONNX file is needed to compare with; give --onnx FILE")
        else:
            report.checks.extend(compare_engine(loaded, source, backend, described, images))
    finally:
        backend.close()
    return report


def compare_engine(
    loaded: LoadedDetector, source: Path, backend: Backend, described: EngineManifest, images: Sequence[np.ndarray]
) -> list[Check]:
    """The engine's detections against torch's, its NMS against plain greedy NMS, its candidates against ONNX Runtime's.

    On two batches for each profile.
    """
    pair = open_pair(loaded, source)
    images = fitting_images(images, described.manifest, source)
    checks = []
    for case in engine_cases(described, images):
        checks += compare(pair._replace(file=pair.file._replace(backend=backend)), case)  # type: ignore[arg-type]  # any backend will do
        theirs, ours = (
            b.infer(case.images, case.image_sizes, all_candidates=True) for b in (pair.file.backend, backend)
        )
        checks.append(_compare_candidates(case, theirs, ours, pair.tolerance))
    return checks


def _compare_candidates(case: Case, theirs: RawOutputs, ours: RawOutputs, tolerance: Tolerance) -> Check:
    """Fraction of those that the precision is sure of and that have no partner of any score; one is forgiven."""
    alone = total = 0
    for a, b in ((theirs, ours), (ours, theirs)):
        for rows, others in zip(_candidates(a, tolerance.score), _candidates(b, 0), strict=True):
            total += len(rows)
            alone += without_partner(rows, others, tolerance.same)
    return Check(case.name, ENGINE_CANDIDATES, total, max(alone - 1, 0) / max(total, 1), tolerance.unmatched)


def engine_cases(described: EngineManifest, images: Sequence[np.ndarray]) -> list[Case]:
    """For each profile the smallest batch on the canvas that it is tuned for, and a larger one on its largest."""
    shapes: dict[tuple[int, tuple[int, ...]], None] = {}
    for profile in described.profiles:
        for batch, canvas in ((profile.least[0], profile.best[1:]), (min(profile.most[0], 3), profile.most[1:])):
            shapes[max(batch, profile.least[0]), canvas] = None
    pad = described.manifest.preprocess.pad_value
    return [make_case(batch, (canvas[0], canvas[1]), images, pad) for batch, canvas in shapes]


def find_source(path: Path, described: EngineManifest) -> Path | None:
    """The ONNX file beside an engine that it was built of, known by its hash."""
    likely = sorted(path.parent.glob("*.onnx"), key=lambda other: other.stem != path.stem)
    return next((other for other in likely if sha256_file(other) == described.onnx_sha256), None)


def reason_not_to_run(described: EngineManifest) -> str | None:
    """Why an engine can't be tried here; None where it can, or where trying will say that it doesn't fit."""
    try:
        import_tensorrt(described.flavor)
    except BackendError as error:
        return str(error).split(";")[0]
    device, reason = find_device()
    return None if device is not None else reason


def report_engine(report: Report) -> int:
    """Print what was found; the exit code."""
    for line in report.checked:
        print(f"ok           {line}")
    for line in report.problems:
        print(f"WRONG        {line}")
    for line in report.unchecked:
        print(f"not checked  {line}")
    if report.checks:
        print_report(report.checks)
    return 0 if report.passed else 1


def _check_origin(described: EngineManifest, loaded: LoadedDetector, path: Path) -> None:
    if described.manifest.checkpoint_sha256 != loaded.sha256:
        raise VerifyError(
            f"{path} was built from another checkpoint (SHA-256 {described.manifest.checkpoint_sha256[:12]}…, recipe "
            f"{described.manifest.recipe}; this one has {loaded.sha256[:12]}…): give that one, or build this one anew"
        )


def _check_manifest(described: EngineManifest, loaded: LoadedDetector, report: Report) -> None:
    stated = check_export(
        described.manifest, detector_manifest(loaded.config, loaded.classes, described.manifest.inputs)
    )
    if stated.passed:
        report.checked.append("its classes, preprocessing and thresholds are the checkpoint's")
    else:
        report.problems.append(f"its {stated.detail} unlike the checkpoint's; build it again: {described.rebuild}")


def _check_header(data: bytes, described: EngineManifest, report: Report) -> None:
    if described.flavor != "rtx":
        report.unchecked.append("the header of its file: that of standard engines is not known")
    elif problems := header_problems(data, described):
        report.problems.extend(f"{problem}; build it again: {described.rebuild}" for problem in problems)
    else:
        report.checked.append(
            f"its header: TensorRT for RTX {described.library_version}, {len(data):,} bytes, compute capability "
            f"{', '.join(described.compute_capabilities)}"
        )


def _check_source(source: Path, described: EngineManifest, report: Report) -> None:
    if sha256_file(source) != described.onnx_sha256:
        report.problems.append(f"{source.name} is not the file that it was built of (another SHA-256)")
        return
    _, manifest = load_deployed(source)
    if manifest == described.manifest:
        report.checked.append(f"{source.name} is the file that it was built of, and its manifest the engine's")
    else:
        report.problems.append(f"{source.name} has another manifest than the engine")


def _check_numbers_of_source(
    loaded: LoadedDetector, source: Path, described: EngineManifest, images: Sequence[np.ndarray], report: Report
) -> None:
    try:
        report.checks.extend(verify(loaded, source, images))
    except BackendError as error:
        report.unchecked.append(f"the numbers of {source.name} ({described.manifest.precision}): {error}")
    else:
        report.checked.append(f"{source.name} was compared with the checkpoint in its place:")


def _check_precision(data: bytes, described: EngineManifest, report: Report) -> None:
    layers = convolutions_of(described, data)
    if not layers:
        report.unchecked.append("the precision of its layers: its inspector names no types")
    elif problem := wrong_precision(layers, described.manifest.precision):
        report.problems.append(f"{problem}; build it again: {described.rebuild}")
    else:
        report.checked.append(f"its convolutions, as the inspector counts them: {summary(layers)}")


def _candidates(raw: RawOutputs, least: float) -> list[Detections]:
    parts = zip(raw.candidate_boxes, raw.candidate_scores, raw.candidate_classes, strict=True)
    return [Detections(b[k], s[k], c[k]) for b, s, c in parts for k in ((s > 0) & (s >= least),)]
