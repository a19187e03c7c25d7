"""NMS as nodes of a graph, in both forms, in ONNX Runtime, against greedy NMS in plain Python."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto
from onnx.helper import make_graph, make_model, make_node, make_opsetid, make_tensor_value_info

from export.onnx_model.nms import BLOCKS, CANDIDATES, MAX_RANKED, WIDE, NmsForm, with_nms
from runtime.backends.onnx_file import OUTPUT_NAMES
from runtime.detections import RawOutputs, postprocess
from runtime.manifest import Thresholds

K = 1300  # more than NMS ranks
IOU, DETECTIONS = 0.6, 100
THRESHOLDS = Thresholds(nms_iou=IOU, detections=DETECTIONS)
FORMS = {"wide": WIDE, "blocks": BLOCKS}
Scene = tuple[np.ndarray, np.ndarray, np.ndarray]  # boxes [B, K, 4], scores [B, K], classes [B, K]


class NmsOutputs(NamedTuple):
    num_detections: np.ndarray
    detection_boxes: np.ndarray
    detection_scores: np.ndarray
    detection_classes: np.ndarray
    nms_exact: np.ndarray


Nms = Callable[[Scene], NmsOutputs]


def candidates_model(rows: int = K) -> onnx.ModelProto:
    """A graph that only passes its candidates on."""
    types = (TensorProto.FLOAT, [4]), (TensorProto.FLOAT, []), (TensorProto.INT32, [])
    inputs, outputs = (
        [
            make_tensor_value_info(prefix + name, kind, ["batch", rows, *more])
            for name, (kind, more) in zip(CANDIDATES, types, strict=True)
        ]
        for prefix in ("given_", "")
    )
    nodes = [make_node("Identity", [f"given_{name}"], [name]) for name in CANDIDATES]
    return make_model(
        make_graph(nodes, "candidates", inputs, outputs), opset_imports=[make_opsetid("", 21)], ir_version=10
    )


def with_form(form: NmsForm, rows: int = K, thresholds: Thresholds = THRESHOLDS) -> onnx.ModelProto:
    model = with_nms(candidates_model(rows), thresholds, form)
    onnx.checker.check_model(model, full_check=True)
    return model


def run(model: onnx.ModelProto) -> Nms:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])

    def infer(scene: Scene) -> NmsOutputs:
        feed = {f"given_{name}": part for name, part in zip(CANDIDATES, scene, strict=True)}
        return NmsOutputs(*session.run(OUTPUT_NAMES[:5], feed))

    return infer


@pytest.fixture(scope="session", params=FORMS)
def form(request: pytest.FixtureRequest) -> NmsForm:
    return FORMS[request.param]


@pytest.fixture(scope="session")
def in_ort(form: NmsForm) -> Nms:
    return run(with_form(form))


def crowd(batch: int, seed: int = 0, objects: int = 60, classes: int = 4, rows: int = K) -> Scene:
    """Candidates scattered around objects, distinct scores."""
    random = np.random.default_rng(seed)
    center = random.uniform(0, 600, (batch, objects, 2))
    size = random.uniform(10, 200, (batch, objects, 2))
    label = random.integers(0, classes, (batch, objects))
    which = np.arange(batch)[:, None], random.integers(0, objects, (batch, rows))
    middle = center[which] + random.normal(0, 0.15, (batch, rows, 2)) * size[which]
    half = size[which] * np.exp(random.normal(0, 0.15, (batch, rows, 2))) / 2
    boxes = np.concatenate([middle - half, middle + half], axis=2).clip(0, 600)
    scores = random.permuted(np.tile(np.linspace(0.05, 0.95, rows), (batch, 1)), axis=1)
    return boxes.astype(np.float32), scores.astype(np.float32), label[which].astype(np.int32)


def single(boxes: list[list[float]], scores: list[float], classes: list[int], rows: int = K) -> Scene:
    """One image with these candidates, filled up with unused rows."""
    scene = np.zeros((1, rows, 4), np.float32), np.zeros((1, rows), np.float32), np.full((1, rows), -1, np.int32)
    scene[0][0, : len(boxes)] = np.array(boxes, np.float32).reshape(-1, 4)
    scene[1][0, : len(scores)] = scores
    scene[2][0, : len(classes)] = classes
    return scene


def oracle(scene: Scene, image: int, detections: int = DETECTIONS) -> list[int]:
    """Greedy NMS, written to be read: rows of the kept candidates, best first (ties: the lower row)."""
    boxes, scores, classes = (part[image].tolist() for part in scene)

    def iou(a: list[float], b: list[float]) -> float:
        width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
        if width <= 0 or height <= 0:
            return 0.0
        both = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1])
        return width * height / (both - width * height)

    kept: list[int] = []
    for row in sorted((r for r in range(len(scores)) if scores[r] > 0), key=lambda r: (-scores[r], r)):
        if all(classes[k] != classes[row] or iou(boxes[k], boxes[row]) <= IOU for k in kept):
            kept.append(row)
    return kept[:detections]


def check_rows(scene: Scene, outputs: NmsOutputs, image: int) -> None:
    """The image's rows are the oracle's, best first, and the unused ones are blank."""
    kept = oracle(scene, image)
    n = len(kept)
    assert outputs.num_detections[image] == n
    np.testing.assert_array_equal(outputs.detection_boxes[image, :n], scene[0][image, kept])
    np.testing.assert_array_equal(outputs.detection_scores[image, :n], scene[1][image, kept])
    np.testing.assert_array_equal(outputs.detection_classes[image, :n], scene[2][image, kept])
    assert not outputs.detection_boxes[image, n:].any()
    assert not outputs.detection_scores[image, n:].any()
    assert (outputs.detection_classes[image, n:] == -1).all()


def sliding_row(length: int) -> Scene:
    """Boxes each shifted by a sixth of their width from the one ranked before: every second one stays, one by one."""
    boxes = [[i * 20.0, 0, i * 20.0 + 100, 100] for i in range(length)]  # neighbours: IoU 0.67, next but one: 0.43
    return single(boxes, np.linspace(0.9, 0.1, length).tolist(), [0] * length)


def test_no_candidate(in_ort: Nms) -> None:
    outputs = in_ort(single([], [], []))
    assert outputs.num_detections.tolist() == [[0]]
    assert outputs.nms_exact.tolist() == [[1]]
    assert not outputs.detection_boxes.any()
    assert not outputs.detection_scores.any()
    assert (outputs.detection_classes == -1).all()


@pytest.mark.parametrize("batch", [1, 3, 16])
def test_equals_greedy_in_onnx(batch: int, in_ort: Nms) -> None:
    scene = crowd(batch, seed=batch)
    outputs = in_ort(scene)
    assert outputs.nms_exact.tolist() == [[1]] * batch
    for image in range(batch):
        check_rows(scene, outputs, image)


@pytest.mark.parametrize(("objects", "classes", "exact"), [(3, 1, 0), (20, 1, 1), (20, 80, 1), (300, 3, 1)])
def test_flag_tells_the_truth(objects: int, classes: int, exact: int, in_ort: Nms) -> None:
    scene = crowd(4, seed=objects, objects=objects, classes=classes)
    outputs = in_ort(scene)
    assert outputs.nms_exact[:, 0].tolist() == [exact] * 4  # on 3 objects fewer than 100 boxes survive
    for image in np.flatnonzero(outputs.nms_exact[:, 0]):
        check_rows(scene, outputs, int(image))


@pytest.mark.parametrize("rows", [1, 37, 100, 255, 256, 257, 700, MAX_RANKED, MAX_RANKED + 1])
def test_other_numbers_of_candidates(rows: int, form: NmsForm) -> None:
    scene = crowd(2, seed=rows, rows=rows)
    outputs = run(with_form(form, rows))(scene)
    assert outputs.detection_boxes.shape == (2, DETECTIONS, 4)
    for image in range(2):
        assert outputs.nms_exact[image] == 1
        check_rows(scene, outputs, image)


def test_the_forms_agree() -> None:
    scene = crowd(3, seed=5)
    wide, blocks = (run(with_form(form))(scene) for form in (WIDE, BLOCKS))
    for ours, theirs in zip(wide, blocks, strict=True):
        np.testing.assert_array_equal(ours, theirs)
        assert ours.dtype == theirs.dtype


@pytest.mark.parametrize("detections", [1, 300, 2500])
def test_other_numbers_of_detections(detections: int, form: NmsForm) -> None:
    """2500: more than are ranked as a rule, and more than half precision counts."""
    scene = crowd(1, seed=11, objects=2600, classes=80, rows=3000)
    outputs = run(with_form(form, 3000, Thresholds(detections=detections)))(scene)
    kept = oracle(scene, 0, detections)
    assert outputs.detection_boxes.shape == (1, detections, 4)
    if outputs.nms_exact[0, 0]:
        np.testing.assert_array_equal(outputs.detection_boxes[0, : len(kept)], scene[0][0, kept])
    assert outputs.nms_exact[0, 0] == (detections < 2500)


def test_legacy_boxes_cover_a_pixel_more(form: NmsForm) -> None:
    """Boxes that include their last pixel: IoU 97 · 101 / (161 · 101) is above 0.6, 96 · 100 / (160 · 100) is not."""
    scene = single([[0, 0, 100, 160], [0, 0, 100, 96]], [0.9, 0.8], [0, 0])
    legacy = run(with_form(form, thresholds=Thresholds(legacy_plus_one=True)))(scene)
    assert legacy.num_detections.tolist() == [[1]]
    assert legacy.nms_exact.tolist() == [[1]]
    assert legacy.detection_boxes[0, 0].tolist() == [0, 0, 100, 160]


def test_one_form_replaces_the_other() -> None:
    """As often as one likes, and nothing of the other is left."""
    wide, blocks = with_form(WIDE), with_form(BLOCKS)
    assert with_nms(wide, THRESHOLDS, BLOCKS) == blocks
    assert with_nms(with_nms(wide, THRESHOLDS, BLOCKS), THRESHOLDS, WIDE) == wide
    assert wide != blocks


def test_batch_equals_singles(in_ort: Nms) -> None:
    scene = crowd(3, seed=6)
    together = in_ort(scene)
    for image in range(3):
        alone = in_ort(tuple(part[image : image + 1] for part in scene))
        for one, all_of_them in zip(alone, together, strict=True):
            np.testing.assert_array_equal(one[0], all_of_them[image])


def test_ties_go_to_the_lower_row(in_ort: Nms) -> None:
    boxes, scores, classes = crowd(4, seed=7)
    scene = boxes, np.round(scores, 1).astype(np.float32), classes
    outputs = in_ort(scene)
    for image in range(4):
        assert outputs.nms_exact[image] == 1
        check_rows(scene, outputs, image)


def test_same_box_of_two_classes_stays(in_ort: Nms) -> None:
    scene = single([[0, 0, 10, 10]] * 3, [0.9, 0.8, 0.7], [2, 5, 2])
    outputs = in_ort(scene)
    assert outputs.num_detections.tolist() == [[2]]
    assert outputs.detection_classes[0, :2].tolist() == [2, 5]


def test_iou_of_exactly_the_threshold_stays(in_ort: Nms) -> None:
    below = single([[0, 0, 100, 160], [0, 0, 100, 96]], [0.9, 0.8], [0, 0])  # 96 / 160 = 0.6
    above = single([[0, 0, 100, 160], [0, 0, 100, 97]], [0.9, 0.8], [0, 0])
    assert in_ort(below).num_detections.tolist() == [[2]]
    assert in_ort(above).num_detections.tolist() == [[1]]


def test_empty_boxes_neither_suppress_nor_fail(in_ort: Nms) -> None:
    scene = single([[5, 5, 5, 5]] * 2 + [[0, 0, 10, 10]], [0.9, 0.8, 0.7], [0, 0, 0])
    outputs = in_ort(scene)
    assert outputs.num_detections.tolist() == [[3]]
    assert outputs.nms_exact.tolist() == [[1]]


@pytest.mark.parametrize(("more", "exact"), [(-4, 1), (0, 1), (1, 0), (5, 0), (600, 0)])
def test_a_chain_longer_than_the_iteration_is_flagged(more: int, exact: int, form: NmsForm, in_ort: Nms) -> None:
    scene = sliding_row(form.iterations + more)
    outputs = in_ort(scene)
    assert outputs.nms_exact.tolist() == [[exact]]
    if exact:
        check_rows(scene, outputs, 0)


def test_a_chain_across_blocks_is_followed(in_ort: Nms) -> None:
    """A block's kept rows suppress rows of every later block, before those are iterated."""
    boxes, scores, classes, block = [], [], [], BLOCKS.block
    for start in (0, block - 4, 2 * block - 3, 3 * block - 2):  # each chain straddles a border between blocks
        for i in range(start, start + 8):
            boxes.append([i * 20.0, start, i * 20.0 + 100, start + 100])
            scores.append(1 - i / 2000)
            classes.append(0)
    others = sorted(set(range(900)) - {round((1 - s) * 2000) for s in scores})
    boxes += [[i * 200.0, 5e5, i * 200 + 10.0, 5e5 + 10] for i in others]
    scores += [1 - i / 2000 for i in others]
    classes += [1] * len(others)
    scene = single(boxes, scores, classes)
    outputs = in_ort(scene)
    assert outputs.nms_exact.tolist() == [[1]]
    check_rows(scene, outputs, 0)


def test_too_few_kept_of_too_many_candidates_is_flagged(in_ort: Nms) -> None:
    """The 1000 best all lie on one object; what was left out of the ranking might have been kept."""
    boxes, scores, classes = crowd(1, objects=1, classes=1)
    boxes[:] = boxes[:, :1]
    assert in_ort((boxes, scores, classes)).nms_exact.tolist() == [[0]]
    scores[0, np.argsort(scores[0])[: K - MAX_RANKED]] = 0  # the same without those left out
    outputs = in_ort((boxes, scores, classes))
    assert outputs.nms_exact.tolist() == [[1]]
    assert outputs.num_detections.tolist() == [[1]]


def test_flagged_images_are_mended_by_the_runtime(in_ort: Nms) -> None:
    """An image that the graph gets right, a chain, and a crowd with too few rows, in one batch."""
    parts = [crowd(1, seed=9), sliding_row(60), crowd(1, seed=3, objects=3, classes=1)]
    scene = tuple(np.concatenate(part) for part in zip(*parts, strict=True))
    outputs = in_ort(scene)
    assert outputs.nms_exact[:, 0].tolist() == [1, 0, 0]
    found = postprocess(RawOutputs(*outputs, *scene), THRESHOLDS)
    for image in range(3):
        kept = oracle(scene, image)
        np.testing.assert_array_equal(found[image].boxes, scene[0][image, kept])
        np.testing.assert_array_equal(found[image].scores, scene[1][image, kept])
        np.testing.assert_array_equal(found[image].classes, scene[2][image, kept])


def test_operators_are_those_that_every_runtime_has(form: NmsForm) -> None:
    model = onnx.shape_inference.infer_shapes(with_form(form))
    operators = {node.op_type for node in model.graph.node}
    assert not operators & {"NonMaxSuppression", "Loop", "If", "Scan", "NonZero", "Compress", "Unique"}
    constants = {value.name for value in model.graph.initializer}
    assert all(node.input[1] in constants for node in model.graph.node if node.op_type == "TopK")
    types = {value.name: value.type.tensor_type.elem_type for value in model.graph.value_info}
    products = [node for node in model.graph.node if node.op_type == "MatMul"]
    assert len(products) == (15 if form is WIDE else 4 * 11 + 3)
    kind = TensorProto.FLOAT16 if form is WIDE else TensorProto.FLOAT  # RTX 7.5 has no float32 product
    assert {types[node.output[0]] for node in products} == {kind}
