"""Class-wise NMS from operators of ONNX Runtime, TensorRT and TensorRT for RTX, as nodes of an ONNX graph.

It has no loop, no `NonMaxSuppression` operator, and no shape that depends on data.

Greedy NMS walks the candidates from the best score down and keeps each candidate that no kept candidate suppresses.
With the strictly lower triangular matrix S (S[j, i]: i is ranked before j, same class, IoU above the threshold) that is

    keep = valid ∧ ¬(S · keep)

which has exactly one solution, because row j depends on rows before j only. Iterating the right side reaches it after
as many steps as the longest chain of candidates that decide over each other; a step without a change proves it.

There are two forms, for two kinds of processors. Both solve the same equation, so they find the same rows wherever both
say that they are exact.

- `WIDE`, for GPUs: one matrix of all ranked candidates. Each step is two operators, and a GPU, for which each operator
  is a launch of some microseconds, has a third of them to launch.
- `BLOCKS`, for CPUs: the ranked candidates are taken in blocks of 256; a block is iterated alone, and then its kept
  rows suppress the rows behind it. This computes half of S, on pieces that fit a processor's cache.

Letters: B images, K candidates, M ≤ K candidates that NMS ranks, n rows of a block, D detections.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, numpy_helper

from runtime.manifest import Thresholds

from .network import ancestors

CANDIDATES = ("candidate_boxes", "candidate_scores", "candidate_classes")  # the outputs of the graph that NMS reads
MAX_RANKED = 1000  # M: enough for 100 detections in all but crowded images; TensorRT's TopK takes at most 3840
MIN_AREA = 1e-9  # px²; two empty boxes have IoU 0 instead of 0 / 0
_PREFIX = "nms/"  # of the names of nodes and values
_EXACT_INTEGERS = {np.float16: 2048, np.float32: 1 << 24}


@dataclasses.dataclass(frozen=True)
class NmsForm:
    """How the equation is solved: rows of a block, steps for each block, and the type of the matrix."""

    block: int
    iterations: int  # chains of 2–8 were seen in random crowds; one more step than the chain proves the end
    dtype: type[np.floating]
    ranks_last_axis: bool  # OpenVINO ranks slowly along another axis; for a GPU it is two more steps


# Sums of zeros and ones below 2048 are exact in half precision, and TensorRT for RTX has no float32 matrix
# multiplication for compute capability 7.5.
WIDE = NmsForm(2048, 16, np.float16, ranks_last_axis=False)
BLOCKS = NmsForm(256, 12, np.float32, ranks_last_axis=True)


def with_nms(model: onnx.ModelProto, thresholds: Thresholds, form: NmsForm) -> onnx.ModelProto:
    """A copy of the model with NMS in this form behind its candidates, in place of any that it has.

    `model` outputs the candidates (boxes float32 [B, K, 4] xyxy, scores float32 [B, K] with 0 in unused rows, classes
    int32 [B, K]; K is a constant). The copy outputs, in this order, and then the candidates:

    - `num_detections` int32 [B, 1]
    - `detection_boxes` float32 [B, D, 4], best score first; unused rows 0
    - `detection_scores` float32 [B, D]; unused rows 0
    - `detection_classes` int32 [B, D]; unused rows −1
    - `nms_exact` int32 [B, 1]

    A candidate is suppressed by a kept one of its class with IoU > `thresholds.nms_iou` and a higher score (equal
    scores: the lower index wins where the backend's TopK is stable, as ONNX Runtime's is). `nms_exact` is 1 where the
    iteration reached its fixpoint and either D rows were found or no candidate was left out of the ranking; 0 asks for
    greedy NMS over all candidates.
    """
    outputs = {value.name: value for value in model.graph.output}
    candidates = [outputs[name] for name in CANDIDATES]
    batch, count = candidates[1].type.tensor_type.shape.dim
    kept = ancestors(model.graph.node, CANDIDATES)
    nms = _Nodes()
    _solve_nms(nms, count.dim_value, thresholds, form)
    read = {name for node in kept for name in node.input}
    made = {name for node in kept for name in node.output}
    found = onnx.ModelProto()
    found.CopyFrom(model)
    graph = found.graph
    for field in (graph.node, graph.initializer, graph.output, graph.value_info):
        del field[:]
    graph.node.extend([*kept, *nms.nodes])
    graph.initializer.extend([value for value in model.graph.initializer if value.name in read] + nms.constants)
    graph.value_info.extend(value for value in model.graph.value_info if value.name in made)
    size = batch.dim_param or batch.dim_value
    rows = thresholds.detections
    for name, kind, shape in (
        ("num_detections", TensorProto.INT32, [size, 1]),
        ("detection_boxes", TensorProto.FLOAT, [size, rows, 4]),
        ("detection_scores", TensorProto.FLOAT, [size, rows]),
        ("detection_classes", TensorProto.INT32, [size, rows]),
        ("nms_exact", TensorProto.INT32, [size, 1]),
    ):
        graph.output.append(onnx.helper.make_tensor_value_info(name, kind, shape))
    graph.output.extend(candidates)
    return found


def _solve_nms(op: _Nodes, count: int, thresholds: Thresholds, form: NmsForm) -> None:
    """Append the nodes of NMS over `count` candidates of an image."""
    boxes, scores, classes = CANDIDATES
    detections = thresholds.detections
    ranked = max(min(MAX_RANKED, count), detections)
    last = op.integers(2)
    scores = op("Unsqueeze", scores, last)  # [B, K, 1]
    if ranked > count:  # with unused rows
        padding = op.integers(0, 0, 0, 0, ranked - count, 0)
        boxes, scores = op("Pad", boxes, padding), op("Pad", scores, padding)
        classes = op("Pad", classes, op.integers(0, 0, 0, ranked - count), op.constant(-1, np.int32))
    best, order = op.top(scores, ranked, form)  # [B, M, 1]
    boxes, classes = op.rows(boxes, order), op("Unsqueeze", op.rows(classes, order), last)  # [B, M, 4], [B, M, 1]
    keep, same = _solve(op, boxes, classes, ranked, thresholds, form)  # [B, M, 1], bool [B, M, 1]
    # Ranked by position, not by score: all keys of kept rows differ, so every backend's TopK gives one answer.
    key_type = form.dtype if ranked <= _EXACT_INTEGERS[form.dtype] else np.float32
    position = op.constant(np.arange(ranked, 0, -1).reshape(1, ranked, 1), key_type)
    falling = op("Mul", op.cast(op("Greater", best, op.constant(0, np.float32)), key_type), position)
    keys = op("Mul", keep if key_type is form.dtype else op.cast(keep, key_type), falling)
    key, rows = op.top(keys, detections, form)  # [B, D, 1]
    exists = op("Greater", key, op.constant(0, key_type))
    # One table [x1, y1, x2, y2, score, class], so that the detections are one gather.
    table = op("Concat", boxes, best, op.cast(classes, np.float32), axis=2)
    found = op("Where", exists, op.rows(table, rows), op.constant([0, 0, 0, 0, 0, -1], np.float32))  # [B, D, 6]
    _, score, label = op.many(
        "Split", found, op.integers(4, 1, 1), outputs=3, axis=2, named=["detection_boxes", None, None]
    )
    op("Squeeze", score, last, named="detection_scores")
    op.cast(op("Squeeze", label, last), np.int32, named="detection_classes")
    first = op.integers(1)
    number = op("ReduceSum", op.cast(exists, np.int32), first, keepdims=0, named="num_detections")  # [B, 1]
    same = op.cast(same, np.int32)
    if ranked >= count:
        op("ReduceMin", same, first, keepdims=0, named="nms_exact")
        return
    given = op.cast(op("Greater", scores, op.constant(0, np.float32)), np.int32)  # [B, K, 1]
    all_ranked = op("LessOrEqual", op("ReduceSum", given, first, keepdims=0), op.constant(ranked, np.int32))
    complete = op("Or", all_ranked, op("GreaterOrEqual", number, op.constant(detections, np.int32)))
    converged = op("ReduceMin", same, first, keepdims=0)
    op("Where", complete, converged, op.constant(0, np.int32), named="nms_exact")


def _solve(op: _Nodes, boxes: str, classes: str, ranked: int, thresholds: Thresholds, form: NmsForm) -> tuple[str, str]:
    """Solve keep = valid ∧ ¬(S · keep) by blocks: keep [B, M, 1] of 0 and 1, and whether the last step left each row.

    Rows without a score are kept where nothing suppresses them; none of them suppresses a row with a score.
    """
    if thresholds.box_growth is not None:
        boxes = op("Add", boxes, op.constant(thresholds.box_growth, np.float32))
    block = min(form.block, ranked)
    alive: str | None = None  # [B, rows from the block's first on, 1]; None: all are
    blocks, settled = [], []
    for start in range(0, ranked, block):
        n = min(block, ranked - start)
        rest, labels = boxes, classes
        if start:
            rest, labels = (op.part(value, start, ranked) for value in (boxes, classes))
        inside = suppresses = _suppresses(op, rest, labels, ranked - start, n, thresholds.nms_iou, form)  # [B, rows, n]
        entering, outside, behind = alive, None, None
        if n < ranked - start:
            sizes = op.integers(n, ranked - start - n)
            inside, outside = op.many("Split", suppresses, sizes, outputs=2, axis=1)
            if alive is not None:
                entering, behind = op.many("Split", alive, sizes, outputs=2, axis=1)
        keep = before = op.stays(op("ReduceSum", inside, op.integers(2)), entering)
        for _ in range(form.iterations - 1):
            before, keep = keep, op.stays(op("MatMul", inside, keep), entering)
        blocks.append(keep)
        settled.append(op("Equal", keep, before))
        if outside is not None:
            alive = op.stays(op("MatMul", outside, keep), behind)
    keep, same = (parts[0] if len(parts) == 1 else op("Concat", *parts, axis=1) for parts in (blocks, settled))
    return keep, same


def _suppresses(op: _Nodes, boxes: str, classes: str, rows: int, n: int, iou_threshold: float, form: NmsForm) -> str:
    """Whether each of the first n rows suppresses each row: 0 and 1, [B, rows, n].

    The class is compared as such: moving boxes apart by class costs precision (0.06 px at 8192 · class).
    """
    u1, v1, u2, v2 = op.many("Split", boxes, outputs=4, axis=2, num_outputs=4)  # [B, rows, 1] each
    area = op("Max", op("Mul", op("Sub", u2, u1), op("Sub", v2, v1)), op.constant(MIN_AREA, np.float32))
    suppressors, areas, labels = boxes, area, classes
    if n < rows:
        suppressors, areas, labels = (op.part(value, 0, n) for value in (boxes, area, classes))
    turned = op("Transpose", suppressors, perm=[0, 2, 1])
    x1, y1, x2, y2 = op.many("Split", turned, outputs=4, axis=1, num_outputs=4)  # [B, 1, n] each
    width = op("Relu", op("Sub", op("Min", x2, u2), op("Max", x1, u1)))
    height = op("Relu", op("Sub", op("Min", y2, v2), op("Max", y1, v1)))
    shared = op("Mul", width, height)
    union = op("Sub", op("Add", op("Transpose", areas, perm=[0, 2, 1]), area), shared)
    overlaps = op("Greater", op("Div", shared, union), op.constant(iou_threshold, np.float32))
    same = op("Equal", op("Transpose", labels, perm=[0, 2, 1]), classes)
    before = op(
        "Less",
        op.constant(np.arange(n).reshape(1, 1, n), np.float32),
        op.constant(np.arange(rows).reshape(1, rows, 1), np.float32),
    )
    return op("Where", overlaps, op.cast(op("And", same, before), form.dtype), op.constant(0, form.dtype))


class _Nodes:
    """Nodes and constants of a graph in the making; a value is its name."""

    def __init__(self) -> None:
        self.nodes: list[NodeProto] = []
        self.constants: list[TensorProto] = []

    def constant(self, array: Any, dtype: Any) -> str:
        """A constant of this value and type."""
        name = f"{_PREFIX}constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(array, dtype), name))
        return name

    def integers(self, *numbers: int) -> str:
        """A constant int64 [n]: axes, sizes."""
        return self.constant(numbers, np.int64)

    def many(
        self, kind: str, *inputs: str, outputs: int, named: Sequence[str | None] = (), **attributes: Any
    ) -> list[str]:
        """The outputs of an operator; `named` may choose their names."""
        name = f"{_PREFIX}{kind.lower()}_{len(self.nodes)}"
        names = [chosen or f"{name}_{i}" for i, chosen in enumerate(named or [None] * outputs)]
        self.nodes.append(onnx.helper.make_node(kind, inputs, names, name, **attributes))
        return names

    def __call__(self, kind: str, *inputs: str, named: str | None = None, **attributes: Any) -> str:
        """The only output of an operator."""
        return self.many(kind, *inputs, outputs=1, named=[named], **attributes)[0]

    def cast(self, value: str, dtype: Any, named: str | None = None) -> str:
        """The value as another type."""
        kind = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        return self("Cast", value, named=named, to=kind)

    def rows(self, table: str, rows: str) -> str:
        """Rows, by their numbers [B, m, 1], of a table [B, n, …]."""
        return self("GatherND", table, rows, batch_dims=1)

    def top(self, values: str, count: int, form: NmsForm) -> list[str]:
        """The greatest of values [B, n, 1] and their rows, [B, count, 1] each."""
        if not form.ranks_last_axis:
            return self.many("TopK", values, self.integers(count), outputs=2, axis=1)
        last = self.integers(2)
        found = self.many("TopK", self("Squeeze", values, last), self.integers(count), outputs=2, axis=1)
        return [self("Unsqueeze", value, last) for value in found]

    def part(self, table: str, start: int, end: int) -> str:
        """Rows start to end of a table [B, n, …]."""
        return self("Slice", table, self.integers(start), self.integers(end), self.integers(1))

    def stays(self, suppressors: str, entering: str | None) -> str:
        """1 where a row entered and has no suppressor, else 0. All entered where `entering` is None."""
        if entering is None:
            return self("HardSigmoid", suppressors, alpha=-1.0, beta=1.0)  # max(0, min(1, 1 − suppressors))
        return self("Relu", self("Sub", entering, suppressors))
