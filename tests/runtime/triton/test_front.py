"""The model in front, with a stand-in for the module that the server's Python has."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from runtime.backends import BackendError
from runtime.detector import Detector
from runtime.manifest import InputShapes, Manifest, to_json
from runtime.triton.front import TritonPythonModel

from ...support.fakes import MANIFEST, RedBackend, manifest_with, red_image, write_red_onnx
from ...support.triton_python import Request, python_backend

SIZES = [(60, 80), (80, 60), (64, 64), (120, 160), (60, 80), (31, 200)]
ALL = ("boxes", "scores", "classes", "labels")


class Network:
    """The network's model in the server: the finder of red rectangles, whose NMS is never exact."""

    def __init__(self, manifest: Manifest = MANIFEST) -> None:
        self.backend = RedBackend(manifest)
        self.fails_on: tuple[int, ...] = ()  # height and width of the canvases

    def __call__(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        images, sizes = inputs["images"], inputs["image_sizes"]
        assert (images.dtype, sizes.dtype, sizes.shape) == (np.uint8, np.int32, (len(images), 2))
        if images.shape[1:3] == self.fails_on:
            raise RuntimeError("out of memory")
        return dataclasses.asdict(self.backend.infer(images, sizes))


@pytest.fixture
def network() -> Network:
    return Network()


def arguments(folder: Path = Path(), **parameters: str) -> dict[str, str]:
    """What the server hands to `initialize`."""
    return {
        "model_config": json.dumps({"parameters": {name: {"string_value": v} for name, v in parameters.items()}}),
        "model_name": "red",
        "model_repository": str(folder),
        "model_version": "1",
        "model_instance_kind": "CPU",
        "model_instance_device_id": "0",
    }


def opened(network: Any, monkeypatch: pytest.MonkeyPatch, manifest: Manifest = MANIFEST) -> TritonPythonModel:
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", python_backend({"red_network": network}))
    model = TritonPythonModel()
    model.initialize(arguments(manifest=to_json(manifest), network="red_network"))
    return model


@pytest.fixture
def model(network: Network, monkeypatch: pytest.MonkeyPatch) -> TritonPythonModel:
    return opened(network, monkeypatch)


def encoded(image: np.ndarray, suffix: str = ".png") -> np.ndarray:
    ok, data = cv2.imencode(suffix, image[..., ::-1])
    assert ok
    return np.array([[data.tobytes()]], np.object_)


def images() -> list[np.ndarray]:
    return [red_image(height, width, (8, 12, width - 8, height - 4)) for height, width in SIZES]


def test_no_requests_give_no_responses(model: TritonPythonModel) -> None:
    assert model.execute([]) == []


def test_a_batch_of_any_sizes_gives_what_the_detector_finds(model: TritonPythonModel, network: Network) -> None:
    """Files and pixels, mixed; images that share a canvas run together; NMS is rerun, since the graph's is inexact."""
    expected = Detector(RedBackend()).detect(images())
    requests = [
        Request(*ALL, encoded=encoded(image)) if number % 2 else Request(*ALL, pixels=image[None])
        for number, image in enumerate(images())
    ]
    for response, wanted in zip(model.execute(requests), expected, strict=True):
        found = {name: response.tensors[name].as_numpy() for name in ALL}
        assert len(wanted) == 2
        assert [(found[name].dtype, found[name].shape) for name in ALL] == [
            (np.float32, (1, 2, 4)),
            (np.float32, (1, 2)),
            (np.int32, (1, 2)),
            (np.object_, (1, 2)),
        ]
        np.testing.assert_array_equal(found["boxes"][0], wanted.boxes)
        np.testing.assert_array_equal(found["scores"][0], wanted.scores)
        np.testing.assert_array_equal(found["classes"][0], wanted.classes)
        assert [MANIFEST.classes.index(label.decode()) for label in found["labels"][0]] == list(wanted.classes)
    canvases = [shape[1:3] for shape in network.backend.batches]
    assert len(set(canvases)) == len(canvases), "images that share a canvas run together"
    assert sum(shape[0] for shape in network.backend.batches) == len(SIZES)
    assert max(shape[0] for shape in network.backend.batches) >= 2


def test_only_what_was_asked_for_is_returned(model: TritonPythonModel) -> None:
    (response,) = model.execute([Request("scores", pixels=red_image()[None])])
    assert list(response.tensors) == ["scores"]


def test_an_image_without_detections(model: TritonPythonModel) -> None:
    (response,) = model.execute([Request(*ALL, pixels=red_image(box=None)[None])])
    assert [response.tensors[name].as_numpy().shape for name in ALL] == [(1, 0, 4), (1, 0), (1, 0), (1, 0)]


@pytest.mark.parametrize(
    ("request_", "told"),
    [
        (Request(*ALL, encoded=np.array([[b""]], np.object_)), "the file is empty"),
        (Request(*ALL, encoded=np.array([[b"GIF89a"]], np.object_)), "truncated, the file ends early"),
        (
            Request(*ALL, encoded=np.array([[encoded(red_image(), ".jpg")[0, 0][:-20]]], np.object_)),
            "truncated, the file ends early",
        ),
        (Request(*ALL), "has 0 images, expected one"),
        (Request(*ALL, pixels=red_image()[None], encoded=encoded(red_image())), "has 2 images, expected one"),
        (Request(*ALL, pixels=np.stack([red_image()] * 2)), "a batch of 2, expected 1"),
        (Request(*ALL, pixels=np.zeros((1, 0, 5, 3), np.uint8)), "expected at least 1"),
        (
            Request(*ALL, pixels=np.broadcast_to(np.zeros((1, 1, 1, 3), np.uint8), (1, 9000, 8000, 3)).copy()),
            "8000×9000 is 72.0 megapixels, the limit is 64",
        ),
        (Request(*ALL, pixels=red_image()[None], is_cancelled=True), "the request was cancelled"),
        (Request(*ALL, pixels=red_image()[None], parameters='{"manifest_sha256": "1"}'), "replaced by another"),
    ],
    ids=["empty", "gif", "truncated", "none", "both", "two", "no-pixels", "large", "cancelled", "stale"],
)
def test_a_bad_request_fails_alone(request_: Request, told: str, model: TritonPythonModel) -> None:
    good = Request(*ALL, pixels=red_image()[None])
    first, bad, last = model.execute([good, request_, good])
    assert told in bad.error().message()
    assert "\n" not in bad.error().message()
    assert [len(one.tensors["scores"].as_numpy()[0]) for one in (first, last)] == [2, 2]


def test_a_failing_network_fails_the_images_of_its_batch(model: TritonPythonModel, network: Network) -> None:
    wide, tall = (red_image(*size, (8, 12, 50, 50)) for size in ((60, 80), (80, 60)))
    network.fails_on = Detector(RedBackend()).canvas_hw((80, 60))
    responses = model.execute([Request(*ALL, pixels=image[None]) for image in (wide, tall, wide)])
    assert [response.has_error() for response in responses] == [False, True, False]
    assert responses[1].error().message() == "the model red_network failed: out of memory"


def test_batches_are_filled_up_to_the_graphs_least(monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = manifest_with(inputs=InputShapes(4, 4, 32, 512, 32, 512))
    network = Network(manifest)
    model = opened(network, monkeypatch, manifest)
    (response,) = model.execute([Request("scores", pixels=red_image()[None])])
    assert len(response.tensors["scores"].as_numpy()[0]) == 2
    assert [shape[0] for shape in network.backend.batches] == [4]


def test_an_output_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    network = Network()

    def without(inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        found = network(inputs)
        del found["nms_exact"]
        return found

    model = opened(without, monkeypatch)
    (response,) = model.execute([Request("scores", pixels=red_image()[None])])
    assert response.error().message() == "the model red_network gave no nms_exact; write both models again"


def test_a_file_of_its_own_is_run_inline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("onnx", reason="builds the test's graph")
    pytest.importorskip("onnxruntime", reason="runs it")
    (tmp_path / "1").mkdir()
    file = write_red_onnx(tmp_path / "1" / "red.onnx")
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", python_backend({}))
    parameters = {"manifest": to_json(MANIFEST), "backend": "cpu"}
    model = TritonPythonModel()
    model.initialize(arguments(tmp_path, model_file="red.onnx", **parameters))
    (response,) = model.execute([Request("boxes", encoded=encoded(red_image()))])
    with Detector(file, backend="cpu", threads=1) as detector:
        np.testing.assert_array_equal(response.tensors["boxes"].as_numpy()[0], detector(red_image()).boxes)
    model.finalize()
    with pytest.raises(BackendError, match=r"none\.onnx: cannot read the model"):
        TritonPythonModel().initialize(arguments(tmp_path, model_file="none.onnx", **parameters))
    on_gpu = {"model_instance_kind": "GPU", "model_instance_device_id": "3"}
    with pytest.raises(BackendError, match="--device 3 is for"):  # a backend of CPUs refuses it
        TritonPythonModel().initialize(arguments(tmp_path, model_file="red.onnx", **parameters) | on_gpu)
