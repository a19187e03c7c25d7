"""What is read from an ONNX file's bytes is what onnx reads; a damaged graph is noticed before a library sees it."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from runtime.backends import BackendError, open_backend
from runtime.backends.onnx_bytes import read_facts
from runtime.backends.onnx_file import check_contract, check_file, difference_of_shapes
from runtime.errors import UserError
from runtime.manifest import METADATA_KEY, InputShapes, Manifest, ManifestError, Thresholds, to_json

from ...support.fakes import MANIFEST, manifest_with, save_with_hash, write_red_onnx


def bare_sha256(model: onnx.ModelProto) -> str:
    """As the export computes it, with the package onnx."""
    bare = onnx.ModelProto()
    bare.CopyFrom(model)
    del bare.metadata_props[:]
    return hashlib.sha256(bare.SerializeToString(deterministic=True)).hexdigest()


def with_maps(path: Path, classes: int | str, anchors: int = 1) -> Path:
    """The red detector with the shapes of dense maps in its graph, as an exported file has them."""
    model = onnx.load(write_red_onnx(path))
    for level in range(2):
        for name, channels in (("class_logits", classes), ("box_regression", 4 * anchors), ("centerness", anchors)):
            size = channels if isinstance(channels, str) else channels * (anchors if name == "class_logits" else 1)
            model.graph.value_info.append(
                helper.make_tensor_value_info(f"{name}_{level}", TensorProto.FLOAT, ["B", size, "h", "w"])
            )
    return save_with_hash(model, path)


def test_the_bytes_say_what_onnx_says(tmp_path: Path) -> None:
    path = write_red_onnx(tmp_path / "a.onnx")
    facts = read_facts(path)
    assert facts is not None
    assert facts == (to_json(MANIFEST).encode(), bare_sha256(onnx.load(path)), None)
    assert facts.graph_sha256 == MANIFEST.graph_sha256


def test_a_file_without_metadata_and_with_more_of_it(tmp_path: Path) -> None:
    bare = read_facts(write_red_onnx(tmp_path / "bare.onnx", manifest=None))
    assert bare is not None
    assert bare.manifest is None
    model = onnx.load(write_red_onnx(tmp_path / "a.onnx"))
    model.metadata_props.add(key="other", value="x" * 1000)
    model.metadata_props.insert(0, onnx.StringStringEntryProto(key="first", value=""))
    (tmp_path / "more.onnx").write_bytes(model.SerializeToString())
    more = read_facts(tmp_path / "more.onnx")
    assert more is not None
    assert (more.manifest, more.graph_sha256) == (to_json(MANIFEST).encode(), bare.graph_sha256)


@pytest.mark.parametrize("anchors", [1, 3])
def test_the_number_of_classes(anchors: int, tmp_path: Path) -> None:
    assert read_facts(with_maps(tmp_path / "a.onnx", 2, anchors)).classes == 2  # type: ignore[union-attr]
    check_file(tmp_path / "a.onnx")
    assert read_facts(with_maps(tmp_path / "b.onnx", 80, anchors)).classes == 80  # type: ignore[union-attr]
    with pytest.raises(ManifestError, match="the graph has 80 classes, the manifest's classes are 2"):
        check_file(tmp_path / "b.onnx")
    assert read_facts(with_maps(tmp_path / "c.onnx", "C")).classes is None  # type: ignore[union-attr]


def test_a_file_that_is_replaced_is_read_again(tmp_path: Path) -> None:
    path = write_red_onnx(tmp_path / "a.onnx")
    check_file(path)
    model = onnx.load(path)
    model.graph.initializer[1].CopyFrom(numpy_helper.from_array(np.array(201, np.float32), "threshold"))
    other = tmp_path / "b.onnx"
    other.write_bytes(model.SerializeToString())
    other.replace(path)
    with pytest.raises(BackendError, match="the graph was changed after its export"):
        check_file(path)


@pytest.mark.parametrize("backend", ["cpu", "openvino"])
def test_every_flipped_bit_is_refused_or_harmless(backend: str, tmp_path: Path) -> None:
    path = tmp_path / "a.onnx"
    whole = write_red_onnx(path).read_bytes()
    facts = read_facts(path)
    assert facts is not None
    random = np.random.default_rng(1)
    refused = 0
    for place in random.integers(0, len(whole), 150):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << random.integers(0, 8)
        path.write_bytes(damaged)
        found = outcome(lambda: open_backend(path, backend=backend))
        if isinstance(found, str):
            refused += 1
            assert "\n" not in found
            continue
        found.close()
        again = read_facts(path)  # then the bit is one of the metadata's, beside the graph
        assert again is not None
        assert again.graph_sha256 == facts.graph_sha256
    assert refused > 60


def outcome(call: Callable[[], Any]) -> Any:
    """What a call returns, or the text of its UserError."""
    try:
        return call()
    except UserError as error:
        return str(error)


@pytest.mark.parametrize(
    "content",
    [b"", b"\x00", b"\xff" * 40, b"\x0a\xff\xff\xff\xff\x7f", b"\x3a\x05abc", b"\x0b", b"no protobuf at all", b"\x08"],
)
def test_what_is_no_onnx_file(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.onnx"
    path.write_bytes(content)
    message = outcome(lambda: open_backend(path, backend="cpu"))
    assert isinstance(message, str)
    assert "\n" not in message
    if content:
        read_facts(path)


def shapes_of(detections: int = 3, candidates: int = 7, **changes: Any) -> dict[str, Any]:
    """Shapes of a graph's tensors by name; None: it depends on the images."""
    rows = {"detection": detections, "candidate": candidates}
    shapes: dict[str, Any] = {
        "images": [None, None, None, 3],
        "image_sizes": [None, 2],
        "num_detections": [None, 1],
        "nms_exact": [None, 1],
    }
    for kind, count in rows.items():
        shapes |= {f"{kind}_boxes": [None, count, 4], f"{kind}_scores": [None, count], f"{kind}_classes": [None, count]}
    return {**shapes, **changes}


FIXED = dataclasses.replace(MANIFEST, inputs=InputShapes(2, 2, 64, 64, 96, 96))


@pytest.mark.parametrize(
    ("manifest", "shapes", "expected"),
    [
        (MANIFEST, shapes_of(), None),
        (MANIFEST, shapes_of(None, None), None),
        (FIXED, shapes_of(), None),
        (FIXED, shapes_of(images=[2, 64, 96, 3], image_sizes=[2, 2]), None),
        (FIXED, shapes_of(images=[2, 64, 64, 3]), "axis 2 of 'images' has 64 in the graph, but 96 by the manifest"),
        (MANIFEST, shapes_of(images=[None, 64, None, 3]), "axis 1 of 'images' has 64 .* but 32 to 512"),
        (MANIFEST, shapes_of(images=[4, None, None, 3]), "axis 0 of 'images' has 4 .* but 1 to 16"),
        (MANIFEST, shapes_of(images=[None, None, None, 1]), "axis 3 of 'images' has 1"),
        (MANIFEST, shapes_of(image_sizes=[None, 4]), "axis 1 of 'image_sizes' has 4"),
        (MANIFEST, shapes_of(101), "axis 1 of 'detection_boxes' has 101 .* but 1 to 100"),
        (manifest_with(thresholds=Thresholds(candidates_per_level=2)), shapes_of(3, 17), "'candidate_boxes' has 17"),
        (MANIFEST, shapes_of(detection_scores=[None, 2]), "the graph has detections in different numbers"),
        (MANIFEST, shapes_of(candidate_classes=[None, 2]), "the graph has candidates in different numbers"),
        (MANIFEST, shapes_of(detection_boxes=[None, 3, 5]), "axis 2 of 'detection_boxes' has 5"),
    ],
)
def test_shapes_that_do_not_fit_the_manifest(manifest: Manifest, shapes: dict[str, Any], expected: str | None) -> None:
    found = difference_of_shapes(shapes, manifest)
    if expected is None:
        assert found is None
    else:
        with pytest.raises(AssertionError, match=expected):
            assert found is None, found


@pytest.mark.parametrize("backend", ["cpu", "openvino"])
def test_a_manifest_that_lies_is_one_line(backend: str, tmp_path: Path) -> None:
    path = write_red_onnx(tmp_path / "a.onnx", manifest_with(thresholds=Thresholds(detections=2)))
    with pytest.raises(ManifestError, match="'detection_boxes' has 3 in the graph, but 1 to 2 by the manifest"):
        open_backend(path, backend=backend)


def test_a_missing_tensor_is_named() -> None:
    kinds = {"images": ("uint8", [None] * 4), "image_sizes": ("int32", [None] * 3)}
    with pytest.raises(BackendError, match="input 'image_sizes' is int32 of rank 3, expected int32 of rank 2"):
        check_contract(Path("x.onnx"), kinds, {}, MANIFEST)


def test_the_manifest_is_the_one_of_this_key(tmp_path: Path) -> None:
    model = onnx.load(write_red_onnx(tmp_path / "a.onnx"))
    model.metadata_props[0].key = METADATA_KEY + "x"
    (tmp_path / "a.onnx").write_bytes(model.SerializeToString())
    assert read_facts(tmp_path / "a.onnx").manifest is None  # type: ignore[union-attr]
    with pytest.raises(BackendError, match="no manifest"):
        open_backend(tmp_path / "a.onnx", backend="cpu")
