"""What a real server detects is what the file detects, to the last bit, whichever way images travel."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.triton_server import TritonServer, served
from runtime.backends.triton.backend import TritonBackend
from runtime.coco.command import main as evaluate
from runtime.detect import main as detect
from runtime.detector import Detector
from runtime.errors import UserError
from runtime.images import decode
from runtime.loadgen.__main__ import main as loadgen
from runtime.triton import TritonDetector

from .conftest import Made, run, same

pytestmark = pytest.mark.triton
MODELS = ("front", "inline")
WAYS = (("grpc", True), ("grpc", False), ("http", True), ("http", False))


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(("protocol", "share"), WAYS)
def test_detections_are_the_files(model: str, protocol: str, share: bool, server: TritonServer, made: Made) -> None:
    with TritonDetector(server.url(model, protocol), share_memory=share) as detector:
        assert ("shared memory" in detector.backend.description) == share
        encoded = detector.detect_encoded([file.read_bytes() for file in made.files])
        decoded = list(detector(made.files))
        alone = detector(made.files[-1])
    for given in (encoded, decoded, [*made.found[:-1], alone]):
        assert len(given) == len(made.found)
        assert all(same(one, wanted) for one, wanted in zip(given, made.found, strict=True))


@pytest.mark.parametrize("model", MODELS)
def test_pixels_of_any_size_are_resized_by_the_server(model: str, server: TritonServer, made: Made) -> None:
    images = [decode(file) for file in made.files]
    with Detector(made.model, backend="cpu", threads=1) as local, TritonDetector(server.url(model)) as detector:
        assert isinstance(detector.backend, TritonBackend)
        for image in images:
            assert same(detector.backend.client.infer_pixels(image), local(image))
    assert len({image.shape for image in images}) >= 5


@pytest.mark.parametrize("model", MODELS)
def test_ap_through_the_server_is_the_files(model: str, server: TritonServer, made: Made, tmp_path: Path) -> None:
    told = {}
    for name, words in (("file", [str(made.model), "--backend", "cpu"]), ("served", [server.url(model)])):
        out = ["--json", str(tmp_path / f"{name}.json"), "--results-out", str(tmp_path / f"{name}.results.json")]
        evaluate([*words, "--annotations", str(made.annotations), "--images", str(made.images), *out])
        told[name] = json.loads((tmp_path / f"{name}.json").read_text())
    assert told["file"]["AP"] > 0.01, "nothing was learnt, so the comparison says nothing"
    assert told["file"]["AP"] == told["served"]["AP"]
    results = [(tmp_path / f"{name}.results.json").read_bytes() for name in told]
    assert results[0] == results[1]


def test_a_file_and_its_served_model_side_by_side(server: TritonServer, made: Made, tmp_path: Path) -> None:
    words = [f"{made.model}@cpu", server.url("front"), "--json", str(tmp_path / "both.json")]
    evaluate([*words, "--annotations", str(made.annotations), "--images", str(made.images)])
    both = json.loads((tmp_path / "both.json").read_text())["artifacts"]
    assert [one["artifact"] for one in both] == words[:2]
    assert both[0]["AP"] == both[1]["AP"] > 0.01


def test_the_other_commands_take_the_address(server: TritonServer, made: Made, tmp_path: Path) -> None:
    url, images = server.url("front"), str(made.images)
    assert detect([url, images, "-o", str(tmp_path / "found"), "--score", "0"]) == 0
    rows = json.loads((tmp_path / "found/detections.json").read_text())
    assert rows["artifact"] == url
    assert sum(len(row["detections"]) for row in rows["images"]) == sum(map(len, made.found[:24]))
    run("-m", "runtime.benchmark", url, "--images", images, "--rounds", 1, "--batch", 4, "--json", tmp_path / "b.json")
    assert json.loads((tmp_path / "b.json").read_text())["artifacts"][0]["path"] == url
    accuracy = ["--accuracy", "--annotations", str(made.annotations), "--images", images, "-o", str(tmp_path / "ap")]
    assert loadgen([url, "--scenario", "Server", *accuracy]) == 0
    assert (tmp_path / "ap/result.json").exists()


def test_nms_is_rerun_where_the_graphs_is_not_exact(made: Made, repository: Path, tmp_path: Path) -> None:
    with (
        served(repository, tmp_path, ATSS_TEST_INEXACT="1") as server,
        TritonDetector(server.url("front")) as detector,
    ):
        found = detector.detect_encoded([file.read_bytes() for file in made.files])
    assert all(same(one, wanted) for one, wanted in zip(found, made.found, strict=True))


def test_what_a_served_model_cannot_do_is_said(server: TritonServer, made: Made) -> None:
    words = [server.url("front"), "--annotations", str(made.annotations), "--images", str(made.images)]
    with pytest.raises(UserError, match="a served model gives no candidates"):
        evaluate([*words, "--flip"])
    with pytest.raises(UserError, match="--backend cpu is for files; the server decides how it runs the model"):
        evaluate([*words, "--backend", "cpu"])
