from __future__ import annotations

import builtins
import dataclasses
from pathlib import Path

import numpy as np
import pytest

from runtime.backends import BackendError, open_backend
from runtime.backends.feeds import check_feed
from runtime.backends.ort.backend import OrtBackend
from runtime.detections import RawOutputs
from runtime.manifest import InputShapes, ManifestError

from ....support.fakes import MANIFEST, ROWS, manifest_with, red_image, save_with_hash, write_red_onnx

onnx = pytest.importorskip("onnx", reason="builds the test's graph")
pytest.importorskip("onnxruntime", reason="the backend under test")


def canvases(count: int) -> tuple[np.ndarray, np.ndarray]:
    images = np.zeros((count, 64, 96, 3), np.uint8)
    for index in range(count):
        images[index, :60, :80] = red_image(box=(10 + index, 20, 50, 40) if index != 1 else None)
    return images, np.full((count, 2), (60, 80), np.int32)


def test_runs_the_contract(model: Path) -> None:
    backend = open_backend(model, backend="cpu", threads=1)
    raw = backend.infer(*canvases(3))
    assert backend.manifest == MANIFEST
    assert backend.description.startswith("ONNX Runtime ")
    assert "CPUExecutionProvider, 1 threads" in backend.description
    assert raw.num_detections.tolist() == [[1], [0], [1]]
    assert raw.detection_boxes[:, 0].tolist() == [[10, 20, 50, 40], [0, 0, 0, 0], [12, 20, 50, 40]]
    assert raw.detection_classes.tolist() == [[0, -1, -1], [-1, -1, -1], [0, -1, -1]]
    assert raw.detection_scores.shape == (3, ROWS)
    backend.close()


def test_a_batch_equals_singles_and_the_outputs_are_the_callers(model: Path) -> None:
    backend = OrtBackend(model)
    images, sizes = canvases(4)
    together = backend.infer(images, sizes)
    kept = together.detection_boxes.copy()
    for index in range(4):
        alone = backend.infer(images[index : index + 1], sizes[index : index + 1])
        for field in dataclasses.fields(RawOutputs):
            np.testing.assert_array_equal(getattr(alone, field.name)[0], getattr(together, field.name)[index])
    np.testing.assert_array_equal(together.detection_boxes, kept)


def test_a_strided_feed_is_taken(model: Path) -> None:
    images, sizes = canvases(4)
    raw = OrtBackend(model).infer(images[::2], sizes[::2])
    assert raw.detection_boxes[1, 0].tolist() == [12, 20, 50, 40]


IMAGES, SIZES = np.zeros((2, 64, 96, 3), np.uint8), np.full((2, 2), 50, np.int32)
FIXED = manifest_with(inputs=InputShapes(2, 4, 64, 64, 96, 128))


@pytest.mark.parametrize(
    ("images", "sizes", "message"),
    [
        (IMAGES.astype(np.float32), SIZES, r"images is float32 \[2, 64, 96, 3\], expected uint8 \[B, H, W, 3\]"),
        (IMAGES[0], SIZES, r"images is uint8 \[64, 96, 3\]"),
        (IMAGES.transpose(0, 3, 1, 2), SIZES, r"images is uint8 \[2, 3, 64, 96\]"),
        (IMAGES, SIZES.astype(np.int64), r"image_sizes is int64 \[2, 2\], expected int32 \[2, 2\]"),
        (IMAGES, SIZES[:1], r"image_sizes is int32 \[1, 2\]"),
        (IMAGES[:1], SIZES[:1], "batch 1, but the graph was exported for 2 to 4"),
        (np.tile(IMAGES, (3, 1, 1, 1)), np.tile(SIZES, (3, 1)), "batch 6, but the graph was exported for 2 to 4"),
        (np.tile(IMAGES, (1, 2, 1, 1)), SIZES, "canvas height 128, but the graph was exported for 64; export it"),
        (IMAGES[:, :, :64], SIZES, "canvas width 64, but the graph was exported for 96 to 128"),
        (np.zeros((2, 64, 100, 3), np.uint8), SIZES, "canvas 100×64, expected sides that are multiples of 32"),
        (IMAGES, SIZES * 0, "not all within the canvas"),
        (IMAGES, SIZES + 30, "not all within the canvas"),
    ],
)
def test_a_feed_that_the_graph_does_not_take(images: np.ndarray, sizes: np.ndarray, message: str) -> None:
    check_feed(IMAGES, SIZES, FIXED)
    with pytest.raises(BackendError, match=message):
        check_feed(images, sizes, FIXED)


def test_the_backend_checks_its_feed(model: Path) -> None:
    with pytest.raises(BackendError, match="batch 17"):
        OrtBackend(model).infer(np.zeros((17, 32, 32, 3), np.uint8), np.full((17, 2), 32, np.int32))


def test_a_closed_backend(model: Path) -> None:
    backend = OrtBackend(model)
    backend.close()
    backend.close()
    with pytest.raises(BackendError, match="was closed"):
        backend.infer(*canvases(1))


def test_files_that_are_not_ours(tmp_path: Path, model: Path, capfd: pytest.CaptureFixture) -> None:
    data = model.read_bytes()
    cases = {
        "empty.onnx": (b"", "the file is empty; export a checkpoint with: python -m export.to_onnx"),
        "text.onnx": (b"hello world, I am no model", "ONNX Runtime cannot open it"),
        "cut.onnx": (data[: len(data) // 2], "ONNX Runtime cannot open it"),
        "cut_late.onnx": (data[:-5], "ONNX Runtime cannot open it|no manifest|not JSON"),
    }
    for name, (content, message) in cases.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises((BackendError, ManifestError), match=message) as caught:
            OrtBackend(tmp_path / name)
        assert str(caught.value).startswith(str(tmp_path / name))
        assert "\n" not in str(caught.value)
    assert capfd.readouterr().err == ""
    with pytest.raises(BackendError, match=r"not one that this toolkit exported \(no manifest\)"):
        OrtBackend(write_red_onnx(tmp_path / "foreign.onnx", manifest=None))
    with pytest.raises(BackendError, match="cannot read the model: No such file or directory"):
        OrtBackend(tmp_path / "missing.onnx")
    (tmp_path / "folder.onnx").mkdir()
    with pytest.raises(BackendError, match="not a file"):
        OrtBackend(tmp_path / "folder.onnx")


def test_another_version_of_the_manifest(tmp_path: Path, model: Path) -> None:
    proto = onnx.load(str(model))
    proto.metadata_props[0].value = proto.metadata_props[0].value.replace('"version": 1', '"version": 2')
    onnx.save(proto, str(tmp_path / "x.onnx"))
    with pytest.raises(
        ManifestError, match=r"manifest version 2, this toolkit .* reads version 1; export the checkpoint"
    ):
        OrtBackend(tmp_path / "x.onnx")


@pytest.mark.parametrize("output", ["detection_scores", "nms_exact", "candidate_classes"])
def test_a_graph_without_one_of_the_contracts_outputs(tmp_path: Path, output: str) -> None:
    path = write_red_onnx(tmp_path / "x.onnx", drop=output)
    with pytest.raises(BackendError, match=f"output '{output}' is missing, expected (float32|int32) of rank"):
        OrtBackend(path)


def test_a_graph_with_another_type(tmp_path: Path, model: Path) -> None:
    proto = onnx.load(str(model))
    proto.graph.input[1].type.tensor_type.elem_type = onnx.TensorProto.INT64
    save_with_hash(proto, tmp_path / "x.onnx")
    with pytest.raises(
        BackendError, match=r"input 'image_sizes' is tensor\(int64\) of rank 2, expected int32 of rank 2"
    ):
        OrtBackend(tmp_path / "x.onnx")


def test_without_onnxruntime(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = builtins.__import__

    def blocked(name: str, *rest: object, **options: object) -> object:
        if name == "onnxruntime":
            raise ModuleNotFoundError("No module named 'onnxruntime'")
        return original(name, *rest, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(builtins, "__import__", blocked)
    with pytest.raises(BackendError, match=r"pip install 'atss-toolkit\[cpu\]'"):
        open_backend(model, backend="cpu")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("x.pt", "must be exported first: python -m export.to_onnx"),
        ("x", "expected a deployed model"),
    ],
)
def test_other_suffixes(name: str, message: str) -> None:
    with pytest.raises(BackendError, match=message):
        open_backend(name)
