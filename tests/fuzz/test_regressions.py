"""Inputs that once ended in a traceback, a crash, or pixels and figures without sense, each in its shortest form."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ..conftest import made_once
from .process import Reader
from .seeds import annotations, make_seeds, results


@pytest.fixture(scope="module")
def seeds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_once(tmp_path_factory, "fuzz_seeds", make_seeds)


@pytest.fixture(scope="module")
def reader(seeds: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reader]:
    with Reader(seeds, tmp_path_factory.mktemp("regressions")) as opened:
        yield opened


def _said(**changes: Any) -> dict[str, bytes]:
    said = {"kind": "array", "dtype": "uint8", "shape": [60, 80, 3], "values": "random", "mode": "RGB", "call": "one"}
    return {"said.json": json.dumps(said | {"object": None} | changes).encode()}


def _line(*words: str) -> dict[str, bytes]:
    return {"arguments.json": json.dumps(words).encode()}


def _nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = {"a": value}
    return value


_RESULTS = ("--results", "SEEDS/results.json", "--annotations", "SEEDS/annotations.json", "--images", "SEEDS/images")
_FOUND = results()
REFUSED: dict[str, tuple[str, dict[str, bytes]]] = {
    "a number that is no image": ("images in memory", _said(kind="object", object=5)),
    "no image at all": ("images in memory", _said(kind="object", object=None)),
    "a number of 5000 digits": (
        "annotations",
        {"a.json": json.dumps(annotations()).replace('"id": 10,', f'"id": {"9" * 5000},').encode()},
    ),
    "brackets without end": ("annotations", {"a.json": b"[" * 100_000}),
    "a value nested deeply, which a message repeats": (
        "results",
        {"r.json": json.dumps([_FOUND[0] | {"image_id": _nested(900)}]).encode()},
    ),
    "an index without models": ("a Triton server's answers", {"answers.json": b'{"ready": false, "index": null}'}),
    "a configuration that is a number": (
        "a Triton server's answers",
        {"answers.json": b'{"ready": true, "config": 0}'},
    ),
    "an output file without a name": ("options of evaluate results", _line(*_RESULTS, "--json", "")),
    "pixels without a number": (
        "options of detect",
        _line("SEEDS/red.onnx", "SEEDS/images", "--max-megapixels", "nan"),
    ),
    "betas of 1 and 2": (
        "options of train",
        _line("atss_tiny", "--out", "run", "--schedule.optimizer", "adamw", "--schedule.betas", "1", "2"),
    ),
    "an IoU of 5": ("options of train", _line("atss_tiny", "--out", "run", "--thresholds.nms-iou", "5")),
    "a name with a zero byte": ("lists of images", {"list.txt": b"images/\x000.jpg\n"}),
}


@pytest.mark.parametrize("name", REFUSED)
def test_it_is_refused_in_one_line(name: str, reader: Reader) -> None:
    outcome = reader.read(*REFUSED[name])
    assert outcome.kind == "refused", outcome.detail


def test_a_part_has_no_results_of_images_that_it_did_not_run(seeds: Path, reader: Reader) -> None:
    files = {f"{index}.json": (seeds / f"part{index}.json").read_bytes() for index in range(2)}
    assert reader.read("parts of an evaluation", files).kind == "accepted"
    part = json.loads(files["1.json"])
    part["results"][0]["image_id"] = 10
    outcome = reader.read("parts of an evaluation", files | {"1.json": json.dumps(part).encode()})
    assert outcome.kind == "refused", outcome.detail
    assert "results of image 10, which the part did not run" in outcome.detail


def test_a_jpeg_with_a_hole_is_refused(seeds: Path, reader: Reader) -> None:
    for name in ("plain.jpg", "progressive.jpg", "restarts.jpg", "grey.jpg"):
        whole = (seeds / "pictures" / name).read_bytes()
        assert reader.read("JPEG", {"picture.jpg": whole}).kind == "accepted"
        begin = whole.index(b"\xff\xda") + 40
        outcome = reader.read("JPEG", {"picture.jpg": whole[:begin] + whole[begin + 150 :]})
        assert outcome.kind == "refused", f"{name}: {outcome.detail}"


def test_a_flipped_bit_of_a_model_is_found(seeds: Path, reader: Reader) -> None:
    """In a weight, so that the file stays one that every library opens."""
    import onnx

    whole = (seeds / "model.onnx").read_bytes()
    weights = max((t.raw_data for t in onnx.load_model_from_string(whole).graph.initializer), key=len)
    at = whole.index(weights) + len(weights) // 2
    damaged = whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :]
    for target in ("a detector in ONNX Runtime", "a detector in OpenVINO", "conversion of ONNX"):
        assert reader.read(target, {"m.onnx": whole}).kind == "accepted"
        outcome = reader.read(target, {"m.onnx": damaged})
        assert outcome.kind == "refused", outcome.detail
