"""Detecting with a served model: a server in this process, which speaks Triton's protocol, stands in for Triton."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
import pytest

from runtime import evaluate
from runtime.backends import BackendError
from runtime.backends.triton.backend import TritonBackend, as_outputs
from runtime.coco import CocoDataset
from runtime.coco.evaluation import score_detector
from runtime.detect import main as detect
from runtime.detections import Detections, empty_detections
from runtime.detector import Detector
from runtime.errors import UserError
from runtime.images.preprocess import plan
from runtime.manifest import InputShapes, Preprocess
from runtime.model_spec import ModelSpec, open_model_with_sha256
from runtime.triton import TritonDetector
from runtime.tta import TtaSettings

from ...support.fakes import MANIFEST, RedBackend, manifest_with, red_image, write_images
from ..coco.test_evaluate import make_dataset

pytest.importorskip("tritonclient.grpc", reason="pip install 'atss-toolkit[triton]'")
if TYPE_CHECKING:
    from ...support.triton_fake import FakeTriton

SIZES = [(60, 80), (80, 60), (64, 64), (120, 160), (60, 80), (31, 200), (512, 512)]


@pytest.fixture
def server() -> Iterator[FakeTriton]:
    from ...support.triton_fake import FakeTriton

    running = FakeTriton()
    yield running
    running.stop()


@pytest.fixture
def dataset(tmp_path: Path) -> CocoDataset:
    return make_dataset(tmp_path)


def test_the_model_may_be_named_apart(server: FakeTriton) -> None:
    with TritonDetector(f"triton://localhost:{server.port}", "red") as detector:
        assert detector.manifest == MANIFEST
    with pytest.raises(BackendError, match="not the address of a served model"):
        TritonDetector(server.url, "blue")


@pytest.mark.parametrize("share", [True, False])
def test_detections_are_the_local_detectors(share: bool, server: FakeTriton, tmp_path: Path) -> None:
    folder = write_images(tmp_path / "images", SIZES)
    files = sorted(folder.glob("*.png"))
    expected = [Detector(RedBackend())(file) for file in files]
    with TritonDetector(server.url, share_memory=share) as detector:
        given = {
            "files": list(detector(files)),
            "encoded": detector.detect_encoded([files[0], *(file.read_bytes() for file in files[1:])]),
            "alone": [detector(file) for file in files],
        }
        assert detector.detect_encoded([]) == []
        (unread, no_file) = detector.detect_encoded([Path("none.jpg"), None])  # type: ignore[list-item]
        assert "none.jpg: cannot read" in str(unread)
        assert "NoneType is no image file" in str(no_file)
        assert bool(server.memory) == share
    for found in given.values():
        for one, wanted in zip(found, expected, strict=True):
            assert len(wanted) == 2
            for name in ("boxes", "scores", "classes"):
                a, b = getattr(one, name), getattr(wanted, name)
                assert a.dtype == b.dtype
                np.testing.assert_array_equal(a, b)
    ways = {way for name, way, _ in server.sent if name == "pixels"}
    assert ways == {"memory" if share else "message"}
    assert (server.memory, server.left_behind) == (set(), []), "everything was given back"
    resized = {(1, *plan(size, MANIFEST.preprocess).resized_hw, 3) for size in SIZES}
    assert {shape for name, _, shape in server.sent if name == "pixels"} == resized, "without the canvas around them"


def test_memory_that_the_server_cannot_read_is_not_used(server: FakeTriton) -> None:
    server.reads_memory = False
    with TritonDetector(server.url) as detector:
        assert "shared memory" not in detector.backend.description
        assert len(detector(red_image())) == 2
    assert {way for _, way, _ in server.sent} == {"message"}


def test_memory_that_is_full_is_not_written_to(server: FakeTriton, monkeypatch: pytest.MonkeyPatch) -> None:
    """Writing into it would end the process; the images travel in messages."""
    tried: list[Path] = []
    with TritonDetector(server.url) as detector:
        assert len(detector(red_image())) == 2  # fits the region that is there

        def full(descriptor: int, *_: object) -> None:
            tried.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")))
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("os.posix_fallocate", full)
        backend = detector.backend
        assert isinstance(backend, TritonBackend)
        large = red_image(800, 800, (8, 8, 700, 700))
        with ThreadPoolExecutor(4) as senders:
            assert [len(one) for one in senders.map(backend.client.infer_pixels, [large] * 4)] == [2] * 4
        assert len(detector(red_image())) == 2
    assert [way for _, way, _ in server.sent] == ["memory", *["message"] * 4, "message"]
    assert len(tried) >= 1
    assert [path for path in (*tried, *server.left_behind) if path.exists()] == []


def test_a_server_that_was_started_again_is_told_of_the_memory_anew(server: FakeTriton) -> None:
    with TritonDetector(server.url) as detector:
        assert len(detector(red_image())) == 2
        server.forget_memory()
        assert [len(detector(red_image())) for _ in range(3)] == [2] * 3
    assert [way for _, way, _ in server.sent] == ["memory", "message", "memory", "memory"]
    assert server.left_behind == []


def test_memory_grows_with_the_images() -> None:
    from ...support.triton_fake import FakeTriton

    large = manifest_with(inputs=InputShapes(1, 16, 32, 2048, 32, 2048), preprocess=Preprocess(1024, 2048))
    server = FakeTriton(large)
    with TritonDetector(server.url) as detector:
        backend = detector.backend
        for side in (64, 1024, 512):
            canvas = red_image(side, side, (8, 8, side - 8, side - 8))[None]
            # Straight to the server: the detector would resize them all to one size.
            assert isinstance(backend, TritonBackend)
            assert len(backend.client.infer_pixels(canvas[0])) == 2
    assert [(way, shape[1]) for _, way, shape in server.sent] == [("memory", 64), ("memory", 1024), ("memory", 512)]
    assert server.memory == set()
    server.stop()


def test_ap_through_the_server_is_the_local_detectors(server: FakeTriton, dataset: CocoDataset) -> None:
    expected = score_detector(Detector(RedBackend()), dataset)
    served = evaluate(server.url, dataset.json_path, dataset.root)
    assert served.metrics == expected.metrics
    assert served.metrics.values["AP"] > 0.9
    assert list(served.results) == list(expected.results)


def test_detect_writes_the_address(server: FakeTriton, tmp_path: Path) -> None:
    folder = write_images(tmp_path / "images", SIZES[:3])
    assert detect([server.url, str(folder), "-o", str(tmp_path / "out"), "--json-only"]) == 0
    written = json.loads((tmp_path / "out/detections.json").read_text())
    assert written["artifact"] == server.url
    assert [len(image["detections"]) for image in written["images"]] == [2, 2, 2]


def test_a_bad_image_fails_alone(server: FakeTriton) -> None:
    ok, good = cv2.imencode(".png", red_image()[..., ::-1])
    assert ok
    with TritonDetector(server.url) as detector:
        found = detector.detect_encoded([good.tobytes(), b"", good.tobytes()[:-20], good.tobytes()])
    assert [len(one) for one in (found[0], found[3]) if isinstance(one, Detections)] == [2, 2]
    assert [str(one) for one in found[1:3]] == [
        "image data: the file is empty; copy or download it again",
        "image data: truncated, the file ends early; copy or download it again",
    ]


def test_what_a_served_model_cannot_do_is_said(server: FakeTriton, dataset: CocoDataset) -> None:
    for tta, told in (
        (TtaSettings(flip=True), "gives no candidates"),
        (TtaSettings((96,), vote=True), "no candidates"),
    ):
        with pytest.raises(BackendError, match=told):
            evaluate(server.url, dataset.json_path, dataset.root, tta=tta)
    with pytest.raises(BackendError, match=r"resizes images to sides 64/128, so it cannot see one at 96×96"):
        evaluate(server.url, dataset.json_path, dataset.root, tta=TtaSettings((96,)))
    with pytest.raises(BackendError, match="--threads 2 is for files; the server decides how it runs the model"):
        Detector(server.url, threads=2)


def test_a_graph_that_needs_full_batches_is_fed_single_images(dataset: CocoDataset) -> None:
    from ...support.triton_fake import FakeTriton

    server = FakeTriton(manifest_with(inputs=InputShapes(4, 8, 32, 512, 32, 512)))
    with TritonDetector(server.url) as detector:
        assert detector.manifest.inputs.batch_min == 1
        assert len(detector(red_image())) == 2
    assert len(server.sent) == 1
    server.stop()


def test_closing_in_flight_gives_all_memory_back(server: FakeTriton) -> None:
    detector = TritonDetector(server.url, timeout_s=5)
    assert "shared memory" in detector.backend.description
    server.sleeps.clear()
    with ThreadPoolExecutor(1) as pool:
        sent = pool.submit(detector, [red_image()] * 8)
        threading.Timer(0.3, detector.close).start()
        with pytest.raises(UserError):
            sent.result()
    server.sleeps.set()
    ends = time.monotonic() + 10
    while server.left_behind and time.monotonic() < ends:
        time.sleep(0.05)
    assert server.left_behind == []


def test_the_graphs_hash_stands_for_the_files(server: FakeTriton) -> None:
    detector, sha256 = open_model_with_sha256(ModelSpec.parse(server.url))
    detector.close()
    assert sha256 == MANIFEST.graph_sha256


def test_a_server_that_is_not_there() -> None:
    with socket.socket() as held:  # bound, but nobody listens
        held.bind(("127.0.0.1", 0))
        port = held.getsockname()[1]
        with pytest.raises(
            BackendError, match=f"the server at localhost:{port} was not reached while connecting"
        ) as no:
            TritonDetector(f"triton://localhost:{port}/red")
        assert one_line(no.value).endswith("is it running, and is that its port for gRPC?")


def test_a_server_without_the_model_names_those_it_has(server: FakeTriton) -> None:
    server.states = {"blue": "READY", "green": "UNAVAILABLE"}
    with pytest.raises(BackendError, match="the server has no model of that name; it has: blue, green") as raised:
        TritonDetector(server.url)
    one_line(raised.value)


@pytest.mark.parametrize("state", ["LOADING", "UNAVAILABLE", ""])
def test_a_model_that_is_not_ready(state: str, server: FakeTriton) -> None:
    server.states["red"] = state
    with pytest.raises(BackendError, match=rf"the model is not ready \({state or 'not loaded'}\); load it") as raised:
        TritonDetector(server.url)
    one_line(raised.value)


def test_another_model_of_that_name(server: FakeTriton) -> None:
    del server.config.parameters["manifest"]
    with pytest.raises(BackendError, match=r"a model that this toolkit did not write \(no manifest") as raised:
        TritonDetector(server.url)
    one_line(raised.value)


@pytest.mark.parametrize("change", ["input", "output", "type", "shape"])
def test_other_tensors(change: str, server: FakeTriton) -> None:
    config = server.config
    match change:
        case "input":
            config.input.add(name="mask", data_type="TYPE_UINT8", dims=[1])
        case "output":
            del config.output[0]
        case "type":
            config.output[1].data_type = 12
        case "shape":
            config.input[1].dims[2] = 4
    kind = "outputs" if change in ("output", "type") else "inputs"
    with pytest.raises(BackendError, match=rf"its {kind} are \{{.*expected \{{") as raised:
        TritonDetector(server.url)
    one_line(raised.value)


def test_a_network_that_drops_in_flight(server: FakeTriton) -> None:
    with TritonDetector(server.url) as detector:
        assert len(detector(red_image())) == 2
        server.sleeps.clear()
        with ThreadPoolExecutor(2) as pool:
            images = pool.submit(detector, [red_image()] * 8)
            files = pool.submit(detector.detect_encoded, [b"x"] * 8)
            threading.Timer(0.3, server.stop).start()
            with pytest.raises(BackendError, match="was not reached while detecting") as raised:
                images.result()
            one_line(raised.value)
            assert all(isinstance(one, UserError) and one_line(one) for one in files.result())
        with pytest.raises(BackendError, match="was not reached while"):
            detector(red_image())


def test_an_answer_that_does_not_come(server: FakeTriton) -> None:
    with TritonDetector(server.url, timeout_s=0.3, share_memory=False) as detector:
        server.sleeps.clear()
        with pytest.raises(BackendError, match="no answer in time while detecting") as raised:
            detector(red_image())
        one_line(raised.value)
        with pytest.raises(BackendError, match="no answer in time while connecting"):
            TritonDetector(server.url, timeout_s=0.3)
        server.sleeps.set()
        assert len(detector(red_image())) == 2


def test_a_closed_detector_says_so(server: FakeTriton) -> None:
    detector = TritonDetector(server.url)
    detector.close()
    for call in (lambda: detector.detect_encoded([b"x"]), lambda: detector(red_image())):
        with pytest.raises(BackendError, match="the connection was closed; open it again"):
            call()


@pytest.mark.parametrize("url", ["triton://localhost:1/red", "triton+http://localhost:1/red"])
def test_a_missing_client_is_one_line(url: str, repository: Path) -> None:
    code = f"""
import sys
sys.modules["tritonclient"] = sys.modules["tritonclient.grpc"] = sys.modules["tritonclient.http"] = None
from runtime.errors import run_main
from runtime.detect import main
run_main(lambda: main(["{url}", "."]))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=repository, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    said = done.stderr.splitlines()[-1]  # behind what the working folder holds beside images
    assert said.startswith(f"error: {url}: Triton's client is not installed")
    assert done.stderr.endswith("pip install 'atss-toolkit[triton]'\n")


def test_no_images_make_an_empty_batch() -> None:
    assert as_outputs([]).detection_boxes.shape == (0, 0, 4)
    raw = as_outputs([empty_detections()])
    assert (raw.num_detections.tolist(), raw.detection_boxes.shape, raw.nms_exact.tolist()) == ([[0]], (1, 0, 4), [[1]])


def one_line(error: BaseException) -> str:
    assert len(str(error).splitlines()) == 1
    return str(error)
