"""The NMS graph, in ONNX Runtime and in torch, against greedy NMS in plain Python."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from export.graph.checkpoint import quiet_exporter
from export.graph.nms import BLOCK, ITERATIONS, MAX_RANKED, NmsOutputs, fixpoint_nms
from export.graph.translation import OPSET
from runtime.detections import RawOutputs, postprocess
from runtime.manifest import Thresholds

K = 1300  # more than NMS ranks
IOU, DETECTIONS = 0.6, 100
Scene = tuple[np.ndarray, np.ndarray, np.ndarray]  # boxes [B, K, 4], scores [B, K], classes [B, K]
Nms = Callable[[Scene], NmsOutputs]


class Module(torch.nn.Module):
    def forward(self, boxes: torch.Tensor, scores: torch.Tensor, classes: torch.Tensor) -> NmsOutputs:
        return fixpoint_nms(boxes, scores, classes, IOU, DETECTIONS)


def in_torch(scene: Scene) -> NmsOutputs:
    return NmsOutputs(*(output.numpy() for output in Module()(*map(torch.from_numpy, scene))))


@pytest.fixture(scope="session")
def model() -> onnx.ModelProto:
    batch = torch.export.Dim("batch", min=1, max=16)
    with quiet_exporter():
        program = torch.onnx.export(
            Module().eval(),
            tuple(map(torch.from_numpy, crowd(2))),
            dynamo=True,
            opset_version=OPSET,
            input_names=["boxes", "scores", "classes"],
            dynamic_shapes=({0: batch},) * 3,
            verbose=False,
        )
    stream = io.BytesIO()
    program.save(stream)
    return onnx.load_from_string(stream.getvalue())


@pytest.fixture(scope="session")
def in_ort(model: onnx.ModelProto) -> Nms:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return lambda scene: NmsOutputs(*session.run(None, dict(zip(("boxes", "scores", "classes"), scene, strict=True))))


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


def oracle(scene: Scene, image: int) -> list[int]:
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
    return kept[:DETECTIONS]


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


@pytest.mark.parametrize("nms_name", ["torch", "onnx"])
def test_no_candidate(nms_name: str, in_ort: Nms) -> None:
    outputs = (in_torch if nms_name == "torch" else in_ort)(single([], [], []))
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


@pytest.mark.parametrize("rows", [1, 37, 100, 255, 700, MAX_RANKED])
def test_fewer_candidates_than_are_ranked(rows: int) -> None:
    scene = crowd(2, seed=rows, rows=rows)
    outputs = in_torch(scene)
    assert outputs.detection_boxes.shape == (2, DETECTIONS, 4)
    for image in range(2):
        assert outputs.nms_exact[image] == 1
        check_rows(scene, outputs, image)


def test_torch_equals_onnx(in_ort: Nms) -> None:
    scene = crowd(3, seed=5)
    for ours, theirs in zip(in_torch(scene), in_ort(scene), strict=True):
        np.testing.assert_array_equal(ours, theirs)
        assert ours.dtype == theirs.dtype


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


@pytest.mark.parametrize(("length", "exact"), [(8, 1), (ITERATIONS, 1), (17, 0), (60, 0), (600, 0)])
def test_a_chain_longer_than_the_iteration_is_flagged(length: int, exact: int, in_ort: Nms) -> None:
    scene = sliding_row(length)
    outputs = in_ort(scene)
    assert outputs.nms_exact.tolist() == [[exact]]
    if exact:
        check_rows(scene, outputs, 0)


def test_a_chain_across_blocks_is_followed(in_ort: Nms) -> None:
    """A block's kept rows suppress rows of every later block, before those are iterated."""
    boxes, scores, classes = [], [], []
    for start in (0, BLOCK - 4, 2 * BLOCK - 3, 3 * BLOCK - 2):  # each chain straddles a border between blocks
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
    found = postprocess(RawOutputs(*outputs, *scene), Thresholds(nms_iou=IOU, detections=DETECTIONS))
    for image in range(3):
        kept = oracle(scene, image)
        np.testing.assert_array_equal(found[image].boxes, scene[0][image, kept])
        np.testing.assert_array_equal(found[image].scores, scene[1][image, kept])
        np.testing.assert_array_equal(found[image].classes, scene[2][image, kept])


def test_operators_are_those_that_every_runtime_has(model: onnx.ModelProto) -> None:
    operators = {node.op_type for node in model.graph.node}
    assert not operators & {"NonMaxSuppression", "Loop", "If", "Scan", "NonZero", "Compress", "Unique"}
    constants = {value.name for value in model.graph.initializer}
    assert all(node.input[1] in constants for node in model.graph.node if node.op_type == "TopK")
    types = {value.name: value.type.tensor_type.elem_type for value in model.graph.value_info}
    products = [node for node in model.graph.node if node.op_type == "MatMul"]
    assert products
    assert {types[node.output[0]] for node in products} == {onnx.TensorProto.FLOAT16}
