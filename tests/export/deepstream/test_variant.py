"""DeepStream's variant of a graph: the same numbers behind nvinfer's input and the parser's outputs."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from export.deepstream.contract import OUTPUTS, box_limits, resized_frame
from export.deepstream.variant import to_variant
from export.deepstream.verify import NUMBERS, SIGNATURE, verify_variant
from export.graph.checkpoint import checkpoint_to_graph
from export.graph.shapes import input_shapes
from export.onnx_model.forms import for_processor
from export.onnx_model.network import ModelError, load_deployed, parse_deployed
from export.onnx_model.session import open_session
from export.quantization.convert import load_float32
from export.trt.engine import load_source
from export.verification.images import make_case, synthetic_images
from runtime.backends import BackendError
from runtime.backends.openvino_backend import OpenVinoBackend
from runtime.backends.ort.backend import OrtBackend
from runtime.manifest import Manifest
from train.build import build_detector
from train.checkpoint import load_detector

from ..conftest import Exported, restamp

INT32, FLOAT = onnx.TensorProto.INT32, onnx.TensorProto.FLOAT


def made(path: Path, canvas_hw: tuple[int, int] | None = None) -> tuple[onnx.ModelProto, onnx.ModelProto, Manifest]:
    """The model in a file, its variant, and the variant's manifest as its file states it."""
    model, manifest = load_deployed(path)
    variant = to_variant(model, manifest, canvas_hw)
    return model, variant, parse_deployed(variant.SerializeToString(), path)[1]


def fed_slowly(canvases: np.ndarray) -> np.ndarray:
    """What nvinfer writes by its documentation, y = net scale factor · (x − mean), pixel by pixel."""
    batch, height, width, _ = canvases.shape
    fed = np.full((batch, 3, height, width), np.nan, np.float32)
    for b in range(batch):
        for channel in range(3):
            for row in range(height):
                for column in range(width):
                    fed[b, channel, row, column] = 1.0 * (float(canvases[b, row, column, channel]) - 0.0)
    return fed


def parsed_slowly(outputs: list[np.ndarray], image: int) -> list[tuple[float, ...]]:
    """(left, top, right, bottom, score, class) of one image, as the parser's source reads its four buffers."""
    count, boxes, scores, classes = (output[image].ravel().tolist() for output in outputs)
    found = []
    for i in range(int(count[0])):
        top, left, bottom, right = (boxes[4 * i + side] for side in range(4))
        assert bottom >= top
        assert right >= left
        found.append((left, top, right, bottom, scores[i], int(classes[i])))
    return found


def direct(model: onnx.ModelProto, manifest: Manifest, canvases: np.ndarray) -> list[list[tuple[float, ...]]]:
    """The same of the original graph, by its own contract."""
    session = open_session(for_processor(model, manifest.thresholds, "gpu"), keep_layout=True)
    sizes = np.array([canvases.shape[1:3]] * len(canvases), np.int32)
    names = ["num_detections", "detection_boxes", "detection_scores", "detection_classes"]
    count, boxes, scores, classes = session.run(names, {"images": canvases, "image_sizes": sizes})
    return [
        [(*map(float, boxes[b, i]), float(scores[b, i]), int(classes[b, i])) for i in range(count[b, 0])]
        for b in range(len(canvases))
    ]


def test_a_variant_has_what_nvinfer_feeds_and_parses(exported: Exported) -> None:
    model, variant, manifest = made(exported.model, (192, 256))
    batch = model.graph.input[0].type.tensor_type.shape.dim[0].dim_param
    assert batch
    sides = {
        value.name: (
            value.type.tensor_type.elem_type,
            [d.dim_value or d.dim_param for d in value.type.tensor_type.shape.dim],
        )
        for value in (*variant.graph.input, *variant.graph.output)
    }
    assert list(sides) == ["images", "num_detections", "detection_boxes", "detection_scores", "detection_classes"]
    assert sides["images"] == (FLOAT, [batch, 3, 192, 256])
    assert sides["num_detections"] == (INT32, [batch, 1])
    assert sides["detection_boxes"] == (FLOAT, [batch, 100, 4])
    assert sides["detection_scores"] == sides["detection_classes"] == (FLOAT, [batch, 100])
    assert (manifest.interface, manifest.inputs.smallest_canvas) == ("deepstream", (192, 256))
    assert manifest.inputs.largest_canvas == (192, 256)
    assert manifest.ap is None
    assert manifest.classes == ("circle", "square", "star")


@pytest.mark.parametrize(("batch", "canvas_hw"), [(1, (64, 96)), (3, (96, 64)), (2, (192, 256))])
def test_it_finds_what_the_graph_finds(batch: int, canvas_hw: tuple[int, int], exported: Exported) -> None:
    """By a slow feeder and a slow parser, on two canvases and batches, with black behind the image."""
    model, variant, manifest = made(exported.model, canvas_hw)
    canvases = make_case(batch, canvas_hw, synthetic_images(), (0, 0, 0)).images
    given = open_session(variant, keep_layout=True).run(None, {"images": fed_slowly(canvases)})
    expected = direct(model, manifest, canvases)
    assert all(len(rows) > 10 for rows in expected)
    assert [parsed_slowly(given, image) for image in range(batch)] == expected


def test_one_variant_serves_every_canvas_where_none_is_fixed(exported: Exported) -> None:
    model, variant, manifest = made(exported.model)
    session = open_session(variant, keep_layout=True)
    for canvas_hw in ((64, 96), (128, 64)):
        canvases = make_case(2, canvas_hw, synthetic_images(), (0, 0, 0)).images
        given = session.run(None, {"images": fed_slowly(canvases)})
        assert [parsed_slowly(given, image) for image in range(2)] == direct(model, manifest, canvases)


def test_a_file_of_one_canvas_and_batch(fixed: tuple[object, Path]) -> None:
    model, variant, manifest = made(fixed[1])
    canvases = make_case(1, (192, 224), synthetic_images(), (0, 0, 0)).images
    given = open_session(variant, keep_layout=True).run(None, {"images": fed_slowly(canvases)})
    assert [parsed_slowly(given, 0)] == direct(model, manifest, canvases)


def test_a_deformable_network(deformable: tuple[object, Path]) -> None:
    model, variant, manifest = made(deformable[1], (96, 128))
    assert [check for check in verify_variant(model, variant, manifest) if not check.passed] == []


def test_a_network_that_eats_blue_first(checkpoint: Path, tmp_path: Path) -> None:
    """Its graph turns the channels; nvinfer feeds RGB to every graph."""
    loaded = load_detector(checkpoint)
    pre = replace(loaded.config.preprocess, channel_order="bgr")
    detector = build_detector(loaded.config.model, 3, pre).eval()
    loaded = loaded._replace(config=replace(loaded.config, preprocess=pre), detector=detector)
    path = tmp_path / "bgr.onnx"
    path.write_bytes(checkpoint_to_graph(loaded, input_shapes(pre, 2, (192, 256))))
    model, variant, manifest = made(path)
    canvases = make_case(2, (192, 256), synthetic_images(), (0, 0, 0)).images
    given = open_session(variant, keep_layout=True).run(None, {"images": fed_slowly(canvases)})
    assert [parsed_slowly(given, image) for image in range(2)] == direct(model, manifest, canvases)


def without_detections(path: Path, out: Path) -> Path:
    """The file with class logits so low that nothing passes the threshold."""
    model, _ = load_deployed(path)
    biases = {node.input[2] for node in model.graph.node if any("class_logits" in name for name in node.output)}
    assert biases
    for value in model.graph.initializer:
        if value.name in biases:
            value.CopyFrom(numpy_helper.from_array(np.full(value.dims, -50, np.float32), value.name))
    return restamp(model, out)


def test_nothing_found_is_nothing_found(exported: Exported, tmp_path: Path) -> None:
    """Unused rows have no class, no score, and boxes that keep the parser from ending the process."""
    model, variant, manifest = made(without_detections(exported.model, tmp_path / "blind.onnx"), (64, 96))
    canvases = make_case(2, (64, 96), synthetic_images(), (0, 0, 0)).images
    count, boxes, scores, classes = open_session(variant).run(None, {"images": fed_slowly(canvases)})
    assert count.tolist() == [[0], [0]]
    assert (boxes == 2).all()
    assert (scores == 0).all()
    assert (classes == -1).all()
    assert all(check.passed for check in verify_variant(model, variant, manifest, synthetic_images()))


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16", "int8", "fp8"])
def test_every_precision_keeps_its_numbers(precision: str, deployed: dict[str, Path]) -> None:
    model, variant, manifest = made(deployed[precision], (96, 128))
    checks = verify_variant(model, variant, manifest)
    assert [check for check in checks if not check.passed] == []
    numbers = [check for check in checks if check.quantity == NUMBERS]
    assert sum(check.compared for check in numbers) == 4 * 601  # batches of 1 and 3; a count, and 100 rows of 6 numbers
    assert manifest.precision == precision


def planted(variant: onnx.ModelProto, change: str) -> onnx.ModelProto:
    """The variant with a defect."""
    broken = onnx.ModelProto()
    broken.CopyFrom(variant)
    graph = broken.graph
    if change == "x and y swapped":
        turn = next(value for value in graph.initializer if value.name == "deepstream/yxyx")
        turn.CopyFrom(numpy_helper.from_array(np.arange(4), turn.name))
    elif change == "red and blue swapped":
        graph.initializer.append(numpy_helper.from_array(np.array([2, 1, 0]), "bgr"))
        for node in graph.node:
            node.input[:] = ["turned" if name == "images" and node.op_type == "Cast" else name for name in node.input]
        turned = onnx.helper.make_node("Gather", ["images", "bgr"], ["turned"], axis=1)
        kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in graph.node]
        del graph.node[:]
        graph.node.extend([turned, *kept])
    elif change == "the image ends early":
        sides = next(value for value in graph.initializer if value.name == "deepstream/sides")
        sides.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(sides) // 2, sides.name))
    elif change == "a weight":
        weight = next(value for value in graph.initializer if len(value.dims) == 4)
        changed = numpy_helper.to_array(weight).copy()
        changed.flat[0] += np.float32(1e-3)
        weight.CopyFrom(numpy_helper.from_array(changed, weight.name))
    elif change == "scores before boxes":
        outputs = [onnx.ValueInfoProto.FromString(value.SerializeToString()) for value in graph.output]
        del graph.output[:]
        graph.output.extend([outputs[0], outputs[2], outputs[1], outputs[3]])
    return broken


@pytest.mark.parametrize(
    ("change", "quantity"),
    [
        ("nothing", None),
        ("x and y swapped", NUMBERS),
        ("red and blue swapped", NUMBERS),
        ("the image ends early", NUMBERS),
        ("a weight", NUMBERS),
        ("scores before boxes", SIGNATURE),
    ],
)
def test_a_planted_defect_is_found(change: str, quantity: str | None, exported: Exported) -> None:
    model, variant, manifest = made(exported.model, (96, 128))
    checks = verify_variant(model, planted(variant, change), manifest)
    assert {check.quantity for check in checks if not check.passed} >= ({quantity} if quantity else set())
    assert all(check.passed for check in checks) == (quantity is None)


def test_a_swap_of_axes_is_seen_by_the_slow_parser(exported: Exported) -> None:
    """So the reference of these tests can tell y1 x1 y2 x2 from x1 y1 x2 y2."""
    model, variant, manifest = made(exported.model, (64, 96))
    canvases = make_case(1, (64, 96), synthetic_images(), (0, 0, 0)).images
    given = open_session(planted(variant, "x and y swapped"), keep_layout=True).run(
        None, {"images": fed_slowly(canvases)}
    )
    assert parsed_slowly(given, 0) != direct(model, manifest, canvases)[0]


def test_boxes_are_limited_to_the_frame_where_asked(exported: Exported) -> None:
    """After NMS, which sees them whole; an earlier DeepStream would drop what ends below the frame."""
    limits = box_limits((60, 90), (96, 96))
    assert limits == (64 - 1 / 64, 96)
    model, manifest = load_deployed(exported.model)
    variant = to_variant(model, manifest, (96, 96), limits)
    _, stated = parse_deployed(variant.SerializeToString(), exported.model)
    canvases = make_case(2, (96, 96), synthetic_images(), (0, 0, 0)).images
    given = open_session(variant, keep_layout=True).run(None, {"images": fed_slowly(canvases)})
    expected = [
        [(min(x1, 96), min(y1, limits[0]), min(x2, 96), min(y2, limits[0]), *rest) for x1, y1, x2, y2, *rest in rows]
        for rows in direct(model, stated, canvases)
    ]
    assert [parsed_slowly(given, image) for image in range(2)] == expected
    assert max(row[3] for rows in expected for row in rows) == limits[0]
    assert all(check.passed for check in verify_variant(model, variant, stated, (), limits))
    assert not all(check.passed for check in verify_variant(model, variant, stated))


@pytest.mark.parametrize(
    ("frame_hw", "canvas_hw", "expected"),
    [
        ((1080, 1920), (192, 320), (180, 320)),
        ((480, 640), (192, 320), (192, 256)),
        ((481, 641), (320, 320), (240, 320)),  # odd sides lose a pixel
        ((100, 300), (320, 320), (106, 320)),  # 106.67
        ((1080, 1920), (544, 960), (540, 960)),
    ],
)
def test_frames_are_scaled_as_nvinfer_does(
    frame_hw: tuple[int, int], canvas_hw: tuple[int, int], expected: tuple[int, int]
) -> None:
    assert resized_frame(frame_hw, canvas_hw) == expected


def test_the_margin_outlasts_nvinfers_rounding() -> None:
    """Of corner and height, each rounded to float32, at the lower edge of frames up to 8K."""
    for height in (240, 1080, 1082, 2160, 4320):
        most, _ = box_limits((height, height * 16 // 9), (192, 320))
        ratio = resized_frame((height, height * 16 // 9), (192, 320))[0] / height
        tops = np.linspace(0, most, 10_001, dtype=np.float32)
        sides = np.float32(most) - tops
        ends = (tops / ratio).astype(np.float32) + (sides / ratio).astype(np.float32)
        assert (ends <= height).all()
        assert ends.min() > height - 1


def test_every_number_of_a_box_is_in_the_canvas(exported: Exported) -> None:
    _, variant, _ = made(exported.model, (64, 96))
    canvases = make_case(2, (64, 96), synthetic_images(), (0, 0, 0)).images
    _, boxes, _, _ = open_session(variant).run(list(OUTPUTS), {"images": fed_slowly(canvases)})
    assert boxes[..., 0::2].max() <= 64
    assert boxes[..., 1::2].max() <= 96
    assert boxes[..., 1::2].max() > 64
    assert not math.isnan(boxes.sum())


@pytest.mark.parametrize("canvas_hw", [(100, 96), (96, 100), (32, 96), (1376, 96)])
def test_a_canvas_that_the_file_lacks(canvas_hw: tuple[int, int], exported: Exported) -> None:
    with pytest.raises(ModelError, match=r"^--canvas \d+ \d+: expected height and width in multiples of 32, within "):
        made(exported.model, canvas_hw)


def test_a_variant_has_no_variant_and_no_other_precision(exported: Exported, tmp_path: Path) -> None:
    _, variant, _ = made(exported.model, (64, 96))
    path = tmp_path / "variant.onnx"
    path.write_bytes(variant.SerializeToString())
    with pytest.raises(ModelError, match="made for deepstream already"):
        made(path)
    with pytest.raises(ModelError, match="made for deepstream; convert the file that it was made from"):
        load_float32(path)


@pytest.mark.parametrize("backend", [OrtBackend, OpenVinoBackend])
def test_this_runtime_refuses_it_in_one_line(backend: type, exported: Exported, tmp_path: Path) -> None:
    if backend is OpenVinoBackend:
        pytest.importorskip("openvino")
    path = tmp_path / "variant.onnx"
    path.write_bytes(made(exported.model, (64, 96))[1].SerializeToString())
    with pytest.raises(BackendError, match="made for DeepStream's nvinfer") as raised:
        backend(path)
    assert len(str(raised.value).splitlines()) == 1


def test_an_engine_is_built_of_the_graph_as_it_is(exported: Exported, tmp_path: Path) -> None:
    """And of no other form, whose outputs would be this runtime's."""
    _, variant, manifest = made(exported.model, (64, 96))
    path = tmp_path / "variant.onnx"
    path.write_bytes(variant.SerializeToString(deterministic=True))
    source = load_source(path)
    assert onnx.load_from_string(source.graph).graph == variant.graph
    assert source.manifest == manifest
