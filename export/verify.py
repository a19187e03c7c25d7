"""Is the deployed file the detector that was trained? Compares their numbers; an export always ends with this.

    python -m export.verify runs/mine/best.pt mine.onnx
    python -m export.verify runs/mine/best.pt mine.engine    # see export/verify_engine.py

For two batch sizes and, where the canvas isn't fixed, two canvases:
- the network: its dense maps, torch against ONNX Runtime, elementwise;
- the postprocessing: candidates that torch and the file make of the same dense maps, as sets;
- NMS: the rows that the runtime returns against plain greedy NMS of the file's candidates, row by row; once as the
  file flags them, once with every image sent through the rerun on the host;
- the whole: detections of torch with greedy NMS against those of the runtime, as sets.
Exit code 1 where a difference exceeds its limit.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
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

from .compare import greedy_nms, rows_that_differ, without_partner
from .graph import INPUT_NAMES, GraphOutputs, dense_names
from .onnx_file import graph_sha256, with_outputs
from .pictures import Case, cases, find_pictures

# Of a dense value, |torch − ONNX| / (1 + |torch|). Float32 sums in another order give about 1e-5 in a ResNet-50, and up
# to 2e-4 where GroupNorm sums over the 10⁵ values of a large canvas' finest map.
DENSE_LIMIT = 5e-4
# Fraction of rows without a partner. Near-ties change rank, and a score beside a threshold may fall either way.
SET_LIMIT = 0.01

if TYPE_CHECKING:
    import onnxruntime


class VerifyError(UserError):
    """A model file that can't be compared with this checkpoint."""


@dataclasses.dataclass(frozen=True)
class Check:
    """One comparison: passed when the worst difference is within its limit."""

    case: str
    quantity: str
    compared: int
    worst: float
    limit: float

    @property
    def passed(self) -> bool:
        return self.worst <= self.limit  # False for NaN


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m export.verify", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("checkpoint", metavar="CKPT", help="checkpoint that training wrote (.pt)")
    parser.add_argument("model", metavar="MODEL", help="file that export/to_onnx.py or to_trt.py made of it")
    parser.add_argument("--images", metavar="DIR", help="compare on pictures of this folder")
    parser.add_argument("--onnx", metavar="FILE", help="what an engine was built of; default: looked for beside it")
    options = parser.parse_args(arguments)
    loaded = load_detector(options.checkpoint)
    pictures = find_pictures(options.images, loaded.config.data.val_images)
    if Path(options.model).suffix in ENGINE_SUFFIXES:
        from .verify_engine import report_engine, verify_engine  # it builds on this module

        source = Path(options.onnx) if options.onnx else None
        return report_engine(verify_engine(loaded, Path(options.model), pictures, source))
    checks = verify(loaded, Path(options.model), pictures)
    print_report(checks)
    return 0 if all(check.passed for check in checks) else 1


def verify(loaded: LoadedDetector, model_path: Path, pictures: Sequence[np.ndarray]) -> list[Check]:
    """Compare a checkpoint's detector with a model file on these pictures (uint8 [h, w, 3] RGB, any sizes).

    Raises UserError for a file that can't be read or was made of something else.
    """
    pair = open_pair(loaded, model_path)
    return [check for case in cases(pair.backend.manifest, pictures) for check in compare(pair, case)]


class Pair(NamedTuple):
    """Both sides of a comparison."""

    loaded: LoadedDetector
    backend: OrtBackend  # the file as it is deployed
    visible: onnxruntime.InferenceSession  # the same graph with its dense maps as outputs


def open_pair(loaded: LoadedDetector, model_path: Path) -> Pair:
    """Open a model file beside the checkpoint that it was made of. Raises UserError."""
    backend = OrtBackend(model_path)  # also says so where the file is foreign, or ONNX Runtime isn't installed
    import onnxruntime

    model = onnx.load(model_path)
    _check_origin(backend.manifest, model, loaded, model_path)
    names = dense_names(loaded.config.model)
    visible = with_outputs(model, names)
    if visible is None:
        raise VerifyError(
            f"{model_path}: the dense maps ({names[0]}, …) are not in the graph under their names; another tool has "
            "rewritten it. Export the checkpoint again: python export/to_onnx.py CHECKPOINT"
        )
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors only, as the backend does
    session = onnxruntime.InferenceSession(visible.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return Pair(loaded, backend, session)


def print_report(checks: Sequence[Check]) -> None:
    """A table of the differences, and one line that sums them up."""
    print(f"{'batch × canvas':18}{'quantity':44}{'compared':>12}{'worst':>10}{'limit':>10}")
    for check in checks:
        verdict = "" if check.passed else "  TOO LARGE"
        print(
            f"{check.case:18}{check.quantity:44}{check.compared:>12,}{check.worst:>10.2g}{check.limit:>10.2g}{verdict}"
        )
    failed = sum(not check.passed for check in checks)
    print(f"{len(checks)} comparisons, {failed or 'none'} beyond the limit")
    if not any(check.compared for check in checks if check.quantity == DETECTIONS):
        print("note: no detections on these pictures, so only what precedes them was compared; try --images DIR")


NETWORK = {
    "class_logits": "network: class logits",
    "box_regression": "network: box regression",
    "centerness": "network: centerness",
}
CANDIDATES = "postprocessing: candidates without partner"
ROWS = "NMS: rows unlike greedy, as flagged"
RERUN = "NMS: rows unlike greedy, rerun on the host"
DETECTIONS = "whole: detections without partner"


def compare(pair: Pair, case: Case) -> list[Check]:
    """All comparisons on one batch."""
    settings, limits = pair.loaded.config, pair.backend.manifest.thresholds
    images, sizes = torch.from_numpy(case.images), torch.from_numpy(case.image_sizes)
    with torch.inference_mode():
        dense = pair.loaded.detector(images)
    checks, onnx_dense, onnx_candidates = _compare_network(pair, case, dense)
    with torch.inference_mode():
        again = candidates(onnx_dense, sizes, settings.model, limits)
        whole = candidates(dense, sizes, settings.model, limits)
    checks.append(_sets(case, CANDIDATES, _as_detections(*again), onnx_candidates))

    raw = pair.backend.infer(case.images, case.image_sizes, all_candidates=True)
    rerun = dataclasses.replace(raw, nms_exact=np.zeros_like(raw.nms_exact))
    greedy = [greedy_nms(image, limits.nms_iou, limits.detections, limits.box_growth) for image in _candidates_of(raw)]
    for quantity, rows in ((ROWS, finish(raw, limits)), (RERUN, finish(rerun, limits))):
        differ = sum(rows_that_differ(a, b) for a, b in zip(greedy, rows, strict=True))
        checks.append(Check(case.name, quantity, sum(map(len, greedy)), differ, 0))
    expected = [
        greedy_nms(image, limits.nms_iou, limits.detections, limits.box_growth) for image in _as_detections(*whole)
    ]
    checks.append(_sets(case, DETECTIONS, expected, finish(raw, limits)))
    return checks


def _compare_network(pair: Pair, case: Case, dense: DenseOutputs) -> tuple[list[Check], DenseOutputs, list[Detections]]:
    """Checks of the dense maps, the file's own dense maps, and the candidates that it made of them."""
    levels = len(dense.class_logits)
    names = dense_names(pair.loaded.config.model)
    feed = dict(zip(INPUT_NAMES, (case.images, case.image_sizes), strict=True))
    contract = pair.visible.run([*GraphOutputs._fields, *names], feed)
    raw, maps = RawOutputs(*contract[: -len(names)]), contract[-len(names) :]
    theirs = DenseOutputs(*([torch.from_numpy(m) for m in maps[i : i + levels]] for i in range(0, 3 * levels, levels)))
    checks = []
    for kind, title in NETWORK.items():
        pairs = list(zip(getattr(dense, kind), getattr(theirs, kind), strict=True))
        if not pairs:  # a head without centerness
            continue
        worst = max(_relative(ours, other) for ours, other in pairs)
        checks.append(Check(case.name, title, sum(ours.numel() for ours, _ in pairs), worst, DENSE_LIMIT))
    return checks, theirs, _candidates_of(raw)


def _relative(expected: torch.Tensor, given: torch.Tensor) -> float:
    if expected.shape != given.shape:
        return float("inf")
    return float(((expected - given).abs() / (1 + expected.abs())).max())


def _sets(case: Case, quantity: str, expected: list[Detections], given: list[Detections]) -> Check:
    """Fraction of rows without a partner; one is always forgiven, for a score beside a threshold."""
    total = sum(map(len, expected)) + sum(map(len, given))
    alone = sum(without_partner(a, b) + without_partner(b, a) for a, b in zip(expected, given, strict=True))
    return Check(case.name, quantity, total, max(alone - 1, 0) / max(total, 1), SET_LIMIT)


def _candidates_of(raw: RawOutputs) -> list[Detections]:
    return _used(raw.candidate_boxes, raw.candidate_scores, raw.candidate_classes)


def _as_detections(boxes: torch.Tensor, scores: torch.Tensor, classes: torch.Tensor) -> list[Detections]:
    return _used(boxes.numpy(), scores.numpy(), classes.numpy())


def _used(boxes: np.ndarray, scores: np.ndarray, classes: np.ndarray) -> list[Detections]:
    return [Detections(b[s > 0], s[s > 0], c[s > 0]) for b, s, c in zip(boxes, scores, classes, strict=True)]


def _check_origin(manifest: Manifest, model: onnx.ModelProto, loaded: LoadedDetector, path: Path) -> None:
    """Raise VerifyError where the file was made of something else, or changed since."""
    if manifest.checkpoint_sha256 != loaded.sha256:
        raise VerifyError(
            f"{path} was exported from another checkpoint (SHA-256 {manifest.checkpoint_sha256[:12]}…, recipe "
            f"{manifest.recipe}; this one has {loaded.sha256[:12]}…): give that one, or export this one anew"
        )
    if manifest.graph_sha256 != graph_sha256(model):
        raise VerifyError(
            f"{path}: the graph was changed after its export (its SHA-256 is not the manifest's); "
            "export the checkpoint again: python export/to_onnx.py CHECKPOINT"
        )


if __name__ == "__main__":
    run_main(main)
