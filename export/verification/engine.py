"""Verify an engine against the checkpoint that it was built from.

Checked everywhere: the hash of the engine's bytes, its header against its description, its checkpoint and ONNX file,
and that file's numbers against the checkpoint. Checked on a GPU that the engine fits: the precision of its
convolutions, and its detections against torch's and ONNX Runtime's. The verification lists what it could not check.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from runtime.backends import Backend, BackendError
from runtime.backends.engine_file import EngineManifest, read_engine
from runtime.backends.trt.backend import TrtBackend
from runtime.backends.trt.engine import import_tensorrt
from runtime.detections import Detections, RawOutputs
from runtime.files import sha256_file
from train.checkpoint import LoadedDetector
from train.trainer.evaluation import detector_manifest

from ..onnx_model.network import load_deployed
from ..onnx_model.precision import format_counts
from ..trt.inspector import inspect_convolutions, precision_problem
from ..trt.library import detect_gpu
from .checkpoint import open_export, verify_export
from .checks import Check, Verification
from .comparison import VerifyError, compare_case, require_images
from .engine_header import header_problems
from .images import Case, make_case
from .manifests import check_export
from .matching import count_unmatched
from .tolerance import Tolerance

ENGINE_CANDIDATES = "engine: candidates unlike ONNX Runtime's"


def verify_engine(
    loaded: LoadedDetector,
    path: Path,
    images: Sequence[np.ndarray],
    onnx_path: Path | None = None,
    open_engine: Callable[[Path], Backend] = TrtBackend,
    why_not: Callable[[EngineManifest], str | None] | None = None,
) -> Verification:
    """Verify an engine that was built from this checkpoint, on images (uint8 [h, w, 3] RGB, any sizes).

    `onnx_path` is the ONNX file that the engine was built from; without it the file is looked for beside the engine.
    `open_engine` opens the engine, and `why_not` says why it can't run here (None: it can). Raises UserError for an
    engine that was altered, that is another checkpoint's, or that doesn't fit the library and GPU here, before a byte
    of it is deserialized.
    """
    data, described = read_engine(path)
    _require_checkpoint(described, loaded, path)
    found = Verification(confirmed=("the engine's SHA-256 is the one in its description",))
    found += _check_manifest(described, loaded)
    found += _check_header(data, described)
    source = onnx_path if onnx_path is not None else find_onnx_source(path, described)
    if source is not None:
        found += _check_source(source, described)
    else:
        found += _unchecked(f"the ONNX file that it was built from: not beside it ({described.onnx_sha256[:12]}…)")
    reason = (why_not or reason_not_to_run)(described)
    if reason is not None:
        found += _unchecked(f"its detections, and the precision of its layers: {reason}")
        if source is not None:
            found += _check_numbers_of_source(loaded, source, described, images)
        return found
    backend = open_engine(path)
    try:
        found += _confirmed(f"it runs: {backend.description}")
        found += _check_precision(data, described)
        if source is None:
            found += _unchecked("its detections: the ONNX file is needed to compare with; give --onnx FILE")
        else:
            found += Verification(tuple(compare_engine(loaded, source, backend, described, images)))
    finally:
        backend.close()
    return found


def compare_engine(
    loaded: LoadedDetector, source: Path, backend: Backend, described: EngineManifest, images: Sequence[np.ndarray]
) -> list[Check]:
    """Compare an open engine with the checkpoint and with its ONNX file in ONNX Runtime, on two batches a profile.

    Compared are its detections (with torch's), its NMS (with plain greedy NMS), its candidates (with ONNX Runtime's).
    """
    comparison = open_export(loaded, source)
    images = require_images(images, described.manifest, source)
    checks = []
    for case in engine_cases(described, images):
        checks += compare_case(comparison._replace(file=comparison.file._replace(backend=backend)), case)  # type: ignore[arg-type]  # ModelFile wants an OrtBackend; any backend works
        theirs, ours = (
            b.infer(case.images, case.image_sizes, all_candidates=True) for b in (comparison.file.backend, backend)
        )
        checks.append(compare_candidates(case, theirs, ours, comparison.tolerance))
    return checks


def compare_candidates(case: Case, theirs: RawOutputs, ours: RawOutputs, tolerance: Tolerance) -> Check:
    """Fraction of candidates without a match on the other side, of those with at least the tolerance's score.

    `theirs` are ONNX Runtime's, `ours` the engine's. One candidate without a match is forgiven.
    """
    alone = total = 0
    for a, b in ((theirs, ours), (ours, theirs)):
        for rows, others in zip(_candidates(a, tolerance.score), _candidates(b, 0), strict=True):
            total += len(rows)
            alone += count_unmatched(rows, others, tolerance.same)
    return Check(case.name, ENGINE_CANDIDATES, total, max(alone - 1, 0) / max(total, 1), tolerance.unmatched)


def engine_cases(described: EngineManifest, images: Sequence[np.ndarray]) -> list[Case]:
    """Two batches a profile: the least batch on the canvas to tune for, and up to 3 images on the largest canvas."""
    shapes: dict[tuple[int, tuple[int, ...]], None] = {}
    for profile in described.profiles:
        for batch, canvas in ((profile.least[0], profile.best[1:]), (min(profile.most[0], 3), profile.most[1:])):
            shapes[max(batch, profile.least[0]), canvas] = None
    pad = described.manifest.preprocess.pad_value
    return [make_case(batch, (canvas[0], canvas[1]), images, pad) for batch, canvas in shapes]


def find_onnx_source(path: Path, described: EngineManifest) -> Path | None:
    """The ONNX file that an engine was built from, found beside the engine by its hash."""
    likely = sorted(path.parent.glob("*.onnx"), key=lambda other: other.stem != path.stem)
    return next((other for other in likely if sha256_file(other) == described.onnx_sha256), None)


def reason_not_to_run(described: EngineManifest) -> str | None:
    """Why an engine can't run here; None where it can, or where opening it will tell that it doesn't fit."""
    try:
        import_tensorrt(described.flavor)
    except BackendError as error:
        return str(error).split(";")[0]
    device, reason = detect_gpu()
    return None if device is not None else reason


def _confirmed(line: str) -> Verification:
    return Verification(confirmed=(line,))


def _problem(*lines: str) -> Verification:
    return Verification(problems=lines)


def _unchecked(line: str) -> Verification:
    return Verification(unchecked=(line,))


def _require_checkpoint(described: EngineManifest, loaded: LoadedDetector, path: Path) -> None:
    if described.manifest.checkpoint_sha256 != loaded.sha256:
        raise VerifyError(
            f"{path} was built from another checkpoint (SHA-256 {described.manifest.checkpoint_sha256[:12]}…, recipe "
            f"{described.manifest.recipe}; the one given has {loaded.sha256[:12]}…): give that checkpoint, or build "
            "the engine again"
        )


def _check_manifest(described: EngineManifest, loaded: LoadedDetector) -> Verification:
    stated = check_export(
        described.manifest, detector_manifest(loaded.config, loaded.classes, described.manifest.inputs)
    )
    if stated.passed:
        return _confirmed("its classes, preprocessing and thresholds are the checkpoint's")
    return _problem(f"its {stated.detail} unlike the checkpoint's; build it again: {described.rebuild}")


def _check_header(data: bytes, described: EngineManifest) -> Verification:
    if described.flavor != "rtx":
        return _unchecked("the header of its file: that of standard engines is not known")
    if problems := header_problems(data, described):
        return _problem(*(f"{problem}; build it again: {described.rebuild}" for problem in problems))
    return _confirmed(
        f"its header: TensorRT for RTX {described.library_version}, {len(data):,} bytes, compute capability "
        f"{', '.join(described.compute_capabilities)}"
    )


def _check_source(source: Path, described: EngineManifest) -> Verification:
    if sha256_file(source) != described.onnx_sha256:
        return _problem(f"{source.name} is not the file that it was built from (another SHA-256)")
    _, manifest = load_deployed(source)
    if manifest == described.manifest:
        return _confirmed(f"{source.name} is the file that it was built from, and its manifest the engine's")
    return _problem(f"{source.name} has another manifest than the engine")


def _check_numbers_of_source(
    loaded: LoadedDetector, source: Path, described: EngineManifest, images: Sequence[np.ndarray]
) -> Verification:
    try:
        checks = verify_export(loaded, source, images)
    except BackendError as error:
        return _unchecked(f"the numbers of {source.name} ({described.manifest.precision}): {error}")
    return Verification(tuple(checks), (f"{source.name} was compared with the checkpoint in its place:",))


def _check_precision(data: bytes, described: EngineManifest) -> Verification:
    layers = inspect_convolutions(described, data)
    if not layers:
        return _unchecked("the precision of its layers: its inspector names no types")
    if problem := precision_problem(layers, described.manifest.precision):
        return _problem(f"{problem}; build it again: {described.rebuild}")
    return _confirmed(f"its convolutions, as the inspector counts them: {format_counts(layers)}")


def _candidates(raw: RawOutputs, least: float) -> list[Detections]:
    parts = zip(raw.candidate_boxes, raw.candidate_scores, raw.candidate_classes, strict=True)
    return [Detections(b[k], s[k], c[k]) for b, s, c in parts for k in ((s > 0) & (s >= least),)]
