"""Records in JSON: manifests, descriptions of engines, calibrations, notes of decoders, remembered speeds."""

from __future__ import annotations

import dataclasses
import json
import math
import string
from pathlib import Path
from typing import Any

from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy

from runtime.errors import UserError
from runtime.manifest import Manifest, from_json, to_json

from ..mutation import damaged, json_files
from ..target import Nonsense, Target, require


@st.composite
def _record(draw: DrawFn, name: str, valid: bytes, most: int = 3) -> dict[str, bytes]:
    return {name: draw(json_files(json.loads(valid), most))}


def check_manifest(manifest: Manifest) -> None:
    """Raise Nonsense for a manifest whose values contradict each other, or that doesn't survive being written."""
    require(from_json(to_json(manifest), "again") == manifest, "another manifest after writing and reading")
    pre, limits, shapes = manifest.preprocess, manifest.thresholds, manifest.inputs
    numbers = (*pre.mean, *pre.std, limits.score, limits.nms_iou)
    require(all(math.isfinite(value) for value in numbers), "a number that is not finite")
    require(len(manifest.classes) == len(manifest.category_ids) == len(set(manifest.category_ids)), "classes and ids")
    require(all(abs(value) < 2**63 for value in manifest.category_ids), "an id of more than 64 bits")
    require(all(value > 0 for value in pre.std) and all(0 <= v <= 255 for v in pre.pad_value), "preprocessing")
    require(1 <= pre.short_side <= pre.long_side < 2**31, "sides")
    require(0 <= limits.score < 1 and 0 < limits.nms_iou <= 1 and limits.detections >= 1, "thresholds")
    for low, high in shapes.ranges.values():
        require(1 <= low <= high < 2**31, f"a range of {low} to {high}")


def require_manifest(config: Any, names: tuple[str, ...], ids: tuple[int, ...]) -> None:
    """Raise Nonsense unless a configuration gives a manifest that survives being written and read."""
    from export.graph.shapes import input_shapes
    from train.checkpoint import Classes
    from train.trainer.evaluation import detector_manifest

    try:
        made = detector_manifest(config, Classes(names, ids), input_shapes(config.preprocess, 3))
        check_manifest(dataclasses.replace(made, checkpoint_sha256="0" * 64, graph_sha256="0" * 64, libraries={}))
    except UserError as error:
        raise Nonsense(f"accepted, but no manifest can be made of it: {error}") from error


def _read_manifest(folder: Path, seeds: Path) -> str:
    from runtime.images.preprocess import plan

    manifest = from_json((folder / "m.json").read_bytes(), "m.json")
    check_manifest(manifest)
    plan((60, 80), manifest.preprocess)
    return manifest.inputs.summary()[:100]


@st.composite
def _engine_inputs(draw: DrawFn, engine: bytes, description: bytes) -> dict[str, bytes]:
    if draw(st.integers(0, 3)) == 3:
        return {"e.engine": draw(damaged(engine)), "e.engine.json": description}
    return {"e.engine": engine, "e.engine.json": draw(json_files(json.loads(description), 3))}


def _read_engine(folder: Path, seeds: Path) -> str:
    from export.verification.engine_header import header_problems
    from runtime.backends.engine_file import read_engine

    data, described = read_engine(folder / "e.engine")
    require(data == (seeds / "model.engine").read_bytes(), "a damaged engine was read")
    check_manifest(described.manifest)
    for profile in described.profiles:
        shapes = zip(profile.least, profile.best, profile.most, strict=True)
        require(all(1 <= low <= best <= high for low, best, high in shapes), f"a profile of {profile}")
    return f"{len(header_problems(data, described))} problems of the header"


@st.composite
def _header_inputs(draw: DrawFn, engine: bytes, description: bytes) -> dict[str, bytes]:
    return {"e.engine": draw(damaged(engine)), "e.engine.json": description}


def _read_header(folder: Path, seeds: Path) -> str:
    from export.verification.engine_header import header_problems
    from runtime.backends.engine_file import read_description

    data, described = (folder / "e.engine").read_bytes(), read_description(folder / "e.engine")
    found = header_problems(data, described)
    whole = (seeds / "model.engine").read_bytes()
    if len(data) != len(whole) or data[:4] != whole[:4]:
        require(bool(found), "an engine of another length, or of another kind, without a problem named")
    return "; ".join(found)


def _read_calibration(folder: Path, seeds: Path) -> str:
    from export.calibration import load_calibration

    found = load_calibration(folder / "c.json")
    for ranges in found.ranges.values():
        for low, high in ranges.values():
            require(math.isfinite(low) and math.isfinite(high) and low <= high, f"a range of {low} to {high}")
    require(all(math.isfinite(v) for values in found.means.values() for v in values), "a mean that is not finite")
    require(found.images >= 1, f"a calibration on {found.images} images")
    return f"{len(found.ranges)} methods"


def _read_note(folder: Path, seeds: Path) -> str:
    from runtime.decoders import read_note

    found = read_note(folder / "m.onnx")
    require(all(0 <= v <= 1 for one in found for v in (one.ap, one.ap_opencv)), "an AP out of 0–1")
    return f"{len(found)} decoders"


def _note_inputs(seeds: Path) -> SearchStrategy[dict[str, bytes]]:
    return _record("m.onnx.decoders.json", (seeds / "decoders.json").read_bytes())


_RIVALS = ("openvino", "cpu")


def _timing_inputs(seeds: Path) -> SearchStrategy[dict[str, bytes]]:
    machine = {
        "file_sha256": "0" * 64,
        "libraries": {"openvino": "2026", "onnxruntime": "1"},
        "processor": "a",
        "processors": 2,
        "threads": 0,
    }
    verdict = {"machine": machine, "milliseconds": dict(zip(_RIVALS, (2.0, 1.0), strict=True)), "rounds": 5}
    return _record("remembered.json", json.dumps(verdict).encode())


def _read_timing(folder: Path, seeds: Path) -> str:
    """Whatever stands in the file that is remembered: it is a choice between the two names, or ignored."""
    import os

    from runtime.backends.fastest import Machine, Verdict, recall, remember

    machine = Machine("0" * 64, {"openvino": "2026", "onnxruntime": "1"}, "a", 2, 0)
    os.environ["ATSS_TOOLKIT_CACHE"] = str(folder / "cache")
    remember(Verdict(machine, dict(zip(_RIVALS, (2.0, 1.0), strict=True)), 5))
    (place,) = (folder / "cache").iterdir()
    place.write_bytes((folder / "remembered.json").read_bytes())
    found = recall(machine, _RIVALS)
    if found is None:
        return "ignored"
    require(found.machine == machine and found.chosen in _RIVALS, f"an unknown backend: {found}")
    require(all(0 < v < math.inf for v in found.milliseconds.values()), f"times of {found.milliseconds}")
    str(found)
    return found.chosen


def _read_ids(folder: Path, seeds: Path) -> str:
    from train.tracking.trackers import read_ids

    ids = dataclasses.astuple(read_ids(folder / "i.json"))
    require(all(set(one) <= set(string.ascii_letters + string.digits + "_-") for one in ids), "an id that isn't one")
    return " ".join(ids)


TARGETS = {
    "manifest": Target(lambda seeds: _record("m.json", (seeds / "manifest.json").read_bytes()), _read_manifest, 3, 60),
    "engine and description": Target(
        lambda seeds: _engine_inputs((seeds / "model.engine").read_bytes(), (seeds / "model.engine.json").read_bytes()),
        _read_engine,
        2,
        40,
    ),
    "engine's header": Target(
        lambda seeds: _header_inputs((seeds / "model.engine").read_bytes(), (seeds / "model.engine.json").read_bytes()),
        _read_header,
        0.5,
        20,
    ),
    "calibration": Target(
        lambda seeds: _record("c.json", (seeds / "calibration.json").read_bytes()), _read_calibration, 1, 30
    ),
    "ids of trackers": Target(
        lambda seeds: _record("i.json", b'{"wandb": "a1b2", "mlflow": "c3"}'), _read_ids, 0.5, 20
    ),
    "note of decoders": Target(_note_inputs, _read_note, 0.5, 20),
    "remembered speed": Target(_timing_inputs, _read_timing, 0.5, 20),
}
