"""A real server under bad input, many clients, clients that go away, reloads and its own end."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest

from benchmarks.triton_server import TritonServer, served
from runtime.backends import BackendError
from runtime.errors import UserError
from runtime.triton import TritonDetector

from .conftest import Made, run, same

pytestmark = pytest.mark.triton
MODELS = ("front", "inline")


def executions(server: TritonServer, model: str) -> tuple[int, int]:
    """Images that a model has detected on, and the batches that the server made of them."""
    with urllib.request.urlopen(f"http://localhost:{server.http}/v2/models/{model}/stats") as answer:
        stats = json.load(answer)["model_stats"][0]
    return int(stats["inference_count"]), int(stats["execution_count"])


@pytest.fixture
def detector(server: TritonServer) -> Iterator[TritonDetector]:
    with TritonDetector(server.url("front")) as opened:
        yield opened


def test_a_bad_image_fails_alone(detector: TritonDetector, made: Made) -> None:
    good = made.files[0].read_bytes()
    ok, huge = cv2.imencode(".jpg", np.zeros((10_000, 10_000, 3), np.uint8))
    assert ok
    bad = [good[: len(good) // 2], b"", b"plain text", huge.tobytes()]
    found = detector.detect_encoded([good, *bad, good])
    assert [str(error) for error in found[1:-1] if isinstance(error, UserError)] == [
        "image data: truncated, the file ends early; copy or download it again",
        "image data: the file is empty; copy or download it again",
        "image data: not an image of a known format by its content; convert it to JPEG or PNG",
        "image data: 10000×10000 is 100.0 megapixels, the limit is 64; scale it down, or raise --max-megapixels "
        "(in training --data.max-megapixels) if you trust the file",
    ]
    assert same(found[0], made.found[0])
    assert same(found[-1], made.found[0])


@pytest.mark.parametrize(
    ("inputs", "told"),
    [
        ({"pixels": np.zeros((1, 8, 8, 3), np.float32)}, "data-type is 'FP32', but .* expects 'UINT8'"),
        ({"pixels": np.zeros((1, 8, 8, 4), np.uint8)}, r"Expected \[-1,-1,-1,3\], got \[1,8,8,4\]"),
        ({"pixels": np.zeros((8, 8, 3), np.uint8)}, r"got \[8,8,3\]"),
        ({"pixels": np.zeros((2, 8, 8, 3), np.uint8)}, "a batch of 2, expected 1: the server makes the batches"),
        ({"pixels": np.zeros((1, 0, 8, 3), np.uint8)}, "image"),
        ({"pixels": np.zeros((1, 9000, 9000, 3), np.uint8)}, "9000×9000 is 81.0 megapixels, the limit is 64"),
        ({"picture": np.zeros((1, 8, 8, 3), np.uint8)}, "unexpected inference input 'picture'"),
        (
            {"pixels": np.zeros((1, 8, 8, 3), np.uint8), "encoded": np.array([[b"x"]], np.object_)},
            "the request has 2 images, expected one",
        ),
    ],
)
def test_a_wrong_request_is_refused_in_words(
    inputs: dict[str, np.ndarray], told: str, server: TritonServer, made: Made, detector: TritonDetector
) -> None:
    """By any client of Triton, not only ours."""
    from tritonclient import grpc
    from tritonclient.utils import InferenceServerException, np_to_triton_dtype

    given = []
    for name, array in inputs.items():
        given.append(grpc.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype)))
        given[-1].set_data_from_numpy(array)
    with (
        contextlib.closing(grpc.InferenceServerClient(f"localhost:{server.grpc}")) as client,
        pytest.raises(InferenceServerException, match=told),
    ):
        client.infer("front", given)
    assert same(detector(made.files[0]), made.found[0]), "the server goes on"


def test_any_client_gets_names_of_classes(server: TritonServer, made: Made) -> None:
    from tritonclient import grpc

    with contextlib.closing(grpc.InferenceServerClient(f"localhost:{server.grpc}")) as client:
        given = grpc.InferInput("encoded", [1, 1], "BYTES")
        given.set_data_from_numpy(np.array([[made.files[0].read_bytes()]], np.object_))
        result = client.infer("front", [given])  # without names, Triton gives all outputs
    classes, labels = result.as_numpy("classes")[0], result.as_numpy("labels")[0]
    assert len(labels) == len(made.found[0])
    with TritonDetector(server.url("front")) as detector:
        assert [label.decode() for label in labels] == [detector.classes[index] for index in classes]


@pytest.mark.parametrize("model", MODELS)
def test_64_clients_at_once(model: str, server: TritonServer, made: Made) -> None:
    """Each has a connection of its own and sends what all others send in the same moment."""
    before = executions(server, model)
    together = threading.Barrier(64)
    images = [(file.read_bytes(), wanted) for file, wanted in zip(made.files, made.found, strict=True)]

    def client(number: int) -> bool:
        with TritonDetector(server.url(model, "http" if number % 2 else "grpc"), share_memory=False) as detector:
            data, wanted = images[number % len(images)]
            together.wait(60)
            (found,) = detector.detect_encoded([data])
            return not isinstance(found, UserError) and same(found, wanted)

    with ThreadPoolExecutor(64) as clients:
        assert all(clients.map(client, range(64)))
    images_done, batches = (after - earlier for after, earlier in zip(executions(server, model), before, strict=True))
    assert images_done == 64
    assert batches <= 32, "the server did not make batches"


SENDER = """
import sys, threading
from pathlib import Path
from runtime.triton import TritonDetector

detector = TritonDetector(sys.argv[1])
files = [Path(name).read_bytes() for name in sys.argv[2:]]
print("sending", flush=True)
while True:
    detector.detect_encoded(files * 4)
    list(detector([*sys.argv[2:]]))
"""


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_a_client_that_goes_away_takes_nothing_with_it(
    protocol: str, server: TritonServer, made: Made, detector: TritonDetector
) -> None:
    """It is killed with requests under way, which may lie in its shared memory."""
    words = [sys.executable, "-c", SENDER, server.url("front", protocol), *map(str, made.files[:8])]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as gone:
        assert gone.stdout is not None
        assert gone.stdout.readline() == "sending\n"
        time.sleep(1)
        gone.kill()
    found = list(detector(made.files))
    assert all(same(one, wanted) for one, wanted in zip(found, made.found, strict=True))
    assert server.process.poll() is None


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_memory_that_the_server_forgot_is_registered_anew(protocol: str, server: TritonServer, made: Made) -> None:
    """As after the server was started again."""
    from tritonclient import grpc

    with (
        TritonDetector(server.url("front", protocol)) as detector,
        contextlib.closing(grpc.InferenceServerClient(f"localhost:{server.grpc}")) as client,
    ):
        assert same(detector(made.files[0]), made.found[0])
        client.unregister_system_shared_memory()
        assert all(same(detector(file), wanted) for file, wanted in zip(made.files, made.found, strict=True))
        assert len(client.get_system_shared_memory_status(as_json=True)["regions"]) == 1


def test_load_reload_and_unload(made: Made, repository: Path, tmp_path: Path) -> None:
    """The model is replaced by itself, then by one of another manifest, while a client stays connected."""
    from tritonclient import grpc

    root = tmp_path / "repository"
    shutil.copytree(repository / "inline", root / "inline")
    with served(root, tmp_path, "--model-control-mode=explicit") as server:
        url = server.url("inline")
        client = grpc.InferenceServerClient(f"localhost:{server.grpc}")
        with pytest.raises(BackendError, match=r"the model is not ready .*load it"):
            TritonDetector(url)
        with pytest.raises(BackendError, match="has no model of that name; it has: inline"):
            TritonDetector(server.url("outline"))
        client.load_model("inline")
        with TritonDetector(url) as detector:
            assert same(detector(made.files[0]), made.found[0])
            shutil.rmtree(root / "inline")
            run("-m", "export.to_triton", made.model, "-o", root, "--name", "inline", "--network", "inline")
            client.load_model("inline")
            assert same(detector(made.files[0]), made.found[0])
            config = root / "inline/config.pbtxt"
            assert "atss_tiny" in config.read_text()
            config.write_text(config.read_text().replace("atss_tiny", "another"))
            client.load_model("inline")
            with pytest.raises(UserError, match=r"the model was replaced by another .* open it again"):
                detector(made.files[0])
            with TritonDetector(url) as opened_again:
                assert same(opened_again(made.files[0]), made.found[0])
            client.unload_model("inline")
            ends = time.monotonic() + 30
            while client.is_model_ready("inline") and time.monotonic() < ends:
                time.sleep(0.1)
            with pytest.raises(UserError, match="inline") as raised:
                detector(made.files[0])
            assert "\n" not in str(raised.value)
        client.close()
        with pytest.raises(BackendError, match="the model is not ready"):
            TritonDetector(url)


def test_the_networks_own_model_is_not_the_one_in_front(server: TritonServer) -> None:
    with pytest.raises(BackendError, match=r'its inputs are \{"image.*expected \{"encoded"'):
        TritonDetector(server.url("front_network"))


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_sigterm_in_flight(protocol: str, made: Made, repository: Path, tmp_path: Path) -> None:
    """Each request under way is answered in full or fails in one line, and the server ends by itself.

    Over gRPC new requests are refused at once. Over HTTP the server goes on answering those who are connected.
    """
    data = [file.read_bytes() for file in made.files] * 8
    wanted = made.found * 8
    with served(repository, tmp_path) as server:
        detector = TritonDetector(server.url("front", protocol))
        with ThreadPoolExecutor(1) as sender:
            sent = sender.submit(detector.detect_encoded, data)
            time.sleep(0.3)
            server.terminate()
            found = sent.result(timeout=120)
        errors = [str(one) for one in found if isinstance(one, UserError)]
        assert len(errors) < len(found), "it answered nothing"
        assert errors or protocol == "http", "it ended before anything was under way"
        assert all("\n" not in error for error in errors)
        assert all(isinstance(a, UserError) or same(a, b) for a, b in zip(found, wanted, strict=True))
        detector.close()
        assert server.wait() == 0, server.log.read_text()[-2000:]
        with pytest.raises(BackendError, match="was not reached while connecting"):
            TritonDetector(server.url("front", protocol))


def test_a_server_that_is_killed(made: Made, repository: Path, tmp_path: Path) -> None:
    with (
        served(repository, tmp_path) as server,
        TritonDetector(server.url("front")) as by_grpc,
        TritonDetector(server.url("front", "http")) as by_http,
        ThreadPoolExecutor(2) as senders,
    ):
        sent = [senders.submit(one, [made.files[0]] * 512) for one in (by_grpc, by_http)]
        time.sleep(0.5)
        server.process.kill()
        for one in sent:
            with pytest.raises(BackendError, match="was not reached while") as raised:
                one.result(timeout=60)
            assert "\n" not in str(raised.value)
