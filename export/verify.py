"""Is the deployed file the detector that was trained? Compares their numbers; an export always ends with this.

    python -m export.verify runs/mine/best.pt mine.onnx
    python -m export.verify runs/mine/best.pt mine.engine    # see export/verify_engine.py
    python -m export.verify mine.onnx mine.int8.onnx --images photos

The reference is the checkpoint, or the float32 file that a conversion started from.
- the precision: what the file's convolutions compute in, counted, against what its manifest says;
- the manifest: classes, preprocessing and thresholds, against the reference's;
- a conversion: node for node and constant for constant against the float32 file (`export.equivalence`);
and for two batch sizes and, where the canvas isn't fixed, two canvases:
- the network: its dense maps, elementwise, or where the file isn't float32 by their root mean square error;
- the postprocessing: candidates that the reference and the file make of the same dense maps, as sets;
- NMS: the rows that the runtime returns against plain greedy NMS of the file's candidates, row by row; once as the
  file flags them, once with every image sent through the rerun on the host;
- the whole: detections of the reference with greedy NMS against those of the runtime, as sets.
How much a network may differ depends on its precision (export/tolerance.py); what follows it never may.
Half precision is emulated, as ONNX Runtime doesn't compute in it on a CPU (export/emulate.py). Exit code 1 where a
difference exceeds its limit.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import onnx
import torch

from runtime.backends.ort import OrtBackend
from runtime.detections import Detections, RawOutputs, finish
from runtime.engine_file import SUFFIXES as ENGINE_SUFFIXES
from runtime.errors import UserError, run_main
from runtime.manifest import Manifest
from train.checkpoint import LoadedDetector, load_detector
from train.detector import DenseOutputs
from train.postprocess import candidates

from .checks import (
    CANDIDATES,
    DETECTIONS,
    NETWORK,
    PRECISION,
    RERUN,
    ROWS,
    SAME_NETWORK,
    Check,
    print_report,
)
from .compare import EXACT, Same, greedy_nms, largest_relative, relative_rms, rows_that_differ, without_partner
from .emulate import emulated, has_bfloat16
from .equivalence import differences
from .graph import GraphOutputs
from .layers import convolutions, wrong_convolutions
from .manifests import check_conversion, check_export
from .network import cut_network, cut_postprocessing, dense_maps, load_deployed
from .onnx_file import INPUT_NAMES, graph_sha256, with_outputs
from .pictures import Case, cases, find_pictures, synthetic_pictures
from .ranges import RangeErrors, ranges_of
from .session import open_session
from .tolerance import TOLERANCES, Tolerance

# Of a dense value, |torch − ONNX| / (1 + |torch|). Float32 sums in another order give about 1e-5 in a ResNet-50, and up
# to 2e-4 where GroupNorm sums over the 10⁵ values of a large canvas' finest map.
DENSE_LIMIT = 5e-4
# Fraction of candidates without a partner. Near-ties change rank, and a score beside a threshold may fall either way.
SET_LIMIT = 0.01

if TYPE_CHECKING:
    import onnxruntime


class VerifyError(UserError):
    """A model file that can't be compared with this checkpoint."""


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m export.verify", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("reference", metavar="CKPT", help="checkpoint that training wrote (.pt), or the float32 file")
    parser.add_argument("model", metavar="MODEL", help="file or engine that was made of it")
    parser.add_argument("--images", metavar="DIR", help="compare on pictures of this folder")
    parser.add_argument("--onnx", metavar="FILE", help="what an engine was built of; default: looked for beside it")
    options = parser.parse_args(arguments)
    model_path = Path(options.model)
    if options.reference.endswith(".onnx"):
        checks = verify_conversion(Path(options.reference), model_path, find_pictures(options.images))
    else:
        loaded = load_detector(options.reference)
        pictures = find_pictures(options.images, loaded.config.data.val_images)
        if model_path.suffix in ENGINE_SUFFIXES:
            from .verify_engine import report_engine, verify_engine  # it builds on this module

            source = Path(options.onnx) if options.onnx else None
            return report_engine(verify_engine(loaded, model_path, pictures, source))
        checks = verify(loaded, model_path, pictures)
    print_report(checks)
    return 0 if all(check.passed for check in checks) else 1


def verify(loaded: LoadedDetector, model_path: Path, pictures: Sequence[np.ndarray]) -> list[Check]:
    """Compare a checkpoint's detector with a model file on these pictures (uint8 [h, w, 3] RGB, any sizes).

    Without any on synthetic ones. Raises UserError for a file that can't be read, that was made of something else, or
    whose precision needs pictures.
    """
    return _checks(open_pair(loaded, model_path), pictures, model_path)


def verify_conversion(source: Path, model_path: Path, pictures: Sequence[np.ndarray]) -> list[Check]:
    """Compare a converted file with the float32 file that it was made of, as `verify` does."""
    return _checks(open_conversion(source, model_path), pictures, model_path)


class Pair(NamedTuple):
    """Both sides of a comparison."""

    reference: Callable[[Case], Dense]
    postprocess: Callable[[Case, Dense], list[Detections]]  # the reference's candidates of any dense maps
    backend: OrtBackend  # the file as it is deployed
    visible: onnxruntime.InferenceSession  # the same graph with its dense maps as outputs, half precision emulated
    dense: list[str]  # their names
    file: list[Check]  # of the file by itself
    ranges: RangeErrors | None
    tolerance: Tolerance


Dense = list[np.ndarray]  # in the order of `dense_maps`


def open_pair(loaded: LoadedDetector, model_path: Path) -> Pair:
    """Open a model file beside the checkpoint that it was made of. Raises UserError."""
    settings = loaded.config

    def reference(case: Case) -> Dense:
        with torch.inference_mode():
            maps = loaded.detector(torch.from_numpy(case.images))
        return [level.numpy() for kind in maps for level in kind]

    def postprocess(case: Case, dense: Dense) -> list[Detections]:
        levels = settings.model.pyramid.levels
        maps = [torch.from_numpy(level) for level in dense]
        outputs = DenseOutputs(*(maps[i : i + levels] for i in range(0, 3 * levels, levels)))
        with torch.inference_mode():
            found = candidates(outputs, torch.from_numpy(case.image_sizes), settings.model, settings.thresholds)
        return _used(*(part.numpy() for part in found))

    backend, manifest, model = _open(model_path)
    if manifest.checkpoint_sha256 != loaded.sha256:
        raise VerifyError(
            f"{model_path} was exported from another checkpoint (SHA-256 {manifest.checkpoint_sha256[:12]}…, recipe "
            f"{manifest.recipe}; this one has {loaded.sha256[:12]}…): give that one, or export this one anew"
        )
    pair = _pair(reference, postprocess, backend, model, manifest, model_path)
    return pair._replace(file=[*pair.file, check_export(manifest, loaded)])


def open_conversion(source: Path, model_path: Path) -> Pair:
    """Open a converted file beside the float32 file that it was made of. Raises UserError."""
    original, original_manifest = load_deployed(source)
    network, postprocessing = open_session(cut_network(original)), open_session(cut_postprocessing(original))
    names = dense_maps(original)

    def reference(case: Case) -> Dense:
        return network.run(names, {INPUT_NAMES[0]: case.images})

    def postprocess(case: Case, dense: Dense) -> list[Detections]:
        known = {**dict(zip(INPUT_NAMES, (case.images, case.image_sizes), strict=True)), **dict(zip(names, dense))}  # noqa: B905
        wanted = [value.name for value in postprocessing.get_inputs()]
        return _used(*postprocessing.run(_CANDIDATES, {name: known[name] for name in wanted}))

    backend, manifest, model = _open(model_path)
    if manifest.checkpoint_sha256 != original_manifest.checkpoint_sha256:
        raise VerifyError(f"{model_path} and {source} were exported from different checkpoints: give the two of one")
    unlike = differences(original, model) if dense_maps(model) == names else ["the dense maps are others"]
    compared = Check("file", SAME_NETWORK, len(original.graph.node), len(unlike), 0, "; ".join(unlike[:3]))
    pair = _pair(reference, postprocess, backend, model, manifest, model_path)
    ranges = ranges_of(model)
    errors = RangeErrors(original, ranges) if ranges and not unlike else None
    stated = check_conversion(manifest, original_manifest)
    return pair._replace(file=[*pair.file, stated, compared], ranges=errors)


def _open(path: Path) -> tuple[OrtBackend, Manifest, onnx.ModelProto]:
    """A file as it is deployed, its manifest and its graph; a bfloat16 one in its emulation. Raises UserError."""
    try:
        model = onnx.load(path)
    except Exception:  # the backend says what is wrong with it
        OrtBackend(path)
        raise
    if has_bfloat16(model):
        with tempfile.TemporaryDirectory() as folder:
            stand_in = Path(folder) / path.name
            stand_in.write_bytes(emulated(model).SerializeToString())
            backend = OrtBackend(stand_in)
    else:
        backend = OrtBackend(path)  # also says so where the file is foreign, or ONNX Runtime isn't installed
    if backend.manifest.graph_sha256 != graph_sha256(model):
        raise VerifyError(
            f"{path}: the graph was changed after its export (its SHA-256 is not the manifest's); "
            "export the checkpoint again: python -m export.to_onnx CHECKPOINT"
        )
    return backend, backend.manifest, model


def _pair(
    reference: Callable[[Case], Dense],
    postprocess: Callable[[Case, Dense], list[Detections]],
    backend: OrtBackend,
    model: onnx.ModelProto,
    manifest: Manifest,
    path: Path,
) -> Pair:
    names = dense_maps(model)
    visible = with_outputs(emulated(model), names) if names else None
    if visible is None:
        raise VerifyError(
            f"{path}: the dense maps (class_logits_0, …) are not in the graph under their names; another tool has "
            "rewritten it. Export the checkpoint again: python -m export.to_onnx CHECKPOINT"
        )
    return Pair(
        reference,
        postprocess,
        backend,
        open_session(visible),
        names,
        [Check("file", PRECISION, convolutions(model).total(), wrong_convolutions(model, manifest.precision), 0)],
        None,
        TOLERANCES[manifest.precision],
    )


def _checks(pair: Pair, pictures: Sequence[np.ndarray], path: Path) -> list[Check]:
    manifest = pair.backend.manifest
    compared = (compare(pair, case) for case in cases(manifest, fitting_pictures(pictures, manifest, path)))
    return [*pair.file, *(check for checks in compared for check in checks)]


def fitting_pictures(pictures: Sequence[np.ndarray], manifest: Manifest, path: Path) -> Sequence[np.ndarray]:
    """The pictures, or synthetic ones where there are none; VerifyError where those are unlike the calibration's."""
    if not pictures and manifest.precision in ("int8", "fp8"):
        raise VerifyError(
            f"{path} is {manifest.precision}, its ranges fit pictures like those that it was calibrated on: give "
            "--images DIR, a folder of such"
        )
    return pictures or synthetic_pictures()


_CANDIDATES = ["candidate_boxes", "candidate_scores", "candidate_classes"]


def compare(pair: Pair, case: Case) -> list[Check]:
    """All comparisons on one batch."""
    limits, tolerance = pair.backend.manifest.thresholds, pair.tolerance
    # First: it says what is wrong with a file that can't run.
    raw = pair.backend.infer(case.images, case.image_sizes, all_candidates=True)
    dense = pair.reference(case)
    theirs, their_candidates = _run_visible(pair, case)
    checks = [pair.ranges.check(case)] if pair.ranges is not None else []
    checks += _compare_network(pair, case, dense, theirs)
    again = pair.postprocess(case, theirs)
    checks.append(_sets(case, CANDIDATES, again, their_candidates, EXACT, SET_LIMIT))

    rerun = dataclasses.replace(raw, nms_exact=np.zeros_like(raw.nms_exact))
    greedy = [greedy_nms(image, limits.nms_iou, limits.detections, limits.box_growth) for image in _candidates_of(raw)]
    for quantity, rows in ((ROWS, finish(raw, limits)), (RERUN, finish(rerun, limits))):
        differ = sum(rows_that_differ(a, b) for a, b in zip(greedy, rows, strict=True))
        checks.append(Check(case.name, quantity, sum(map(len, greedy)), differ, 0))
    expected = [
        greedy_nms(image, limits.nms_iou, limits.detections, limits.box_growth)
        for image in pair.postprocess(case, dense)
    ]
    found = finish(raw, limits)
    floors = [  # which is the last of 100 detections, tiny changes of score decide
        max(
            [
                tolerance.score,
                *(float(x.scores[-1]) + tolerance.same.score for x in rows if len(x) == limits.detections),
            ]
        )
        for rows in zip(expected, found, strict=True)
    ]
    checks.append(_sets(case, DETECTIONS, expected, found, tolerance.same, tolerance.unmatched, floors))
    return checks


def _run_visible(pair: Pair, case: Case) -> tuple[Dense, list[Detections]]:
    """The file's own dense maps, and the candidates that it made of them."""
    feed = dict(zip(INPUT_NAMES, (case.images, case.image_sizes), strict=True))
    found = pair.visible.run([*GraphOutputs._fields, *pair.dense], feed)
    contract = len(GraphOutputs._fields)
    return found[contract:], _candidates_of(RawOutputs(*found[:contract]))


def _compare_network(pair: Pair, case: Case, dense: Dense, theirs: Dense) -> list[Check]:
    checks = []
    exact = pair.tolerance is TOLERANCES["fp32"]
    for kind, title in NETWORK.items():
        maps = [(a, b) for name, a, b in zip(pair.dense, dense, theirs, strict=True) if name.startswith(kind)]
        if not maps:  # a head without centerness
            continue
        worst = max(largest_relative(a, b) for a, b in maps) if exact else relative_rms(maps)
        limit = DENSE_LIMIT if exact else pair.tolerance.dense
        checks.append(Check(case.name, title, sum(a.size for a, _ in maps), worst, limit))
    return checks


def _sets(
    case: Case,
    quantity: str,
    expected: list[Detections],
    given: list[Detections],
    same: Same,
    limit: float,
    floors: Sequence[float] | None = None,
) -> Check:
    """Fraction of rows of at least an image's score without a partner of any score; one is always forgiven, for a score
    beside a threshold."""
    alone, total = 0, 0
    for a, b, floor in zip(expected, given, floors or [0.0] * len(expected), strict=True):
        for rows, others in ((_above(a, floor), b), (_above(b, floor), a)):
            total += len(rows)
            alone += without_partner(rows, others, same)
    return Check(case.name, quantity, total, max(alone - 1, 0) / max(total, 1), limit)


def _above(rows: Detections, score: float) -> Detections:
    kept = rows.scores >= score
    return Detections(rows.boxes[kept], rows.scores[kept], rows.classes[kept])


def _candidates_of(raw: RawOutputs) -> list[Detections]:
    return _used(raw.candidate_boxes, raw.candidate_scores, raw.candidate_classes)


def _used(boxes: np.ndarray, scores: np.ndarray, classes: np.ndarray) -> list[Detections]:
    return [Detections(b[s > 0], s[s > 0], c[s > 0]) for b, s, c in zip(boxes, scores, classes, strict=True)]


if __name__ == "__main__":
    run_main(main)
