"""The windowed assignment on a GPU beside the one with full matrices: microseconds, kernels, memory, equal results.

ATSS for batch 16, k 9 and 800 × 1344 with 7, 50 and 200 boxes an image; functions alternate, figures are medians. The
canvas's anchors are made before, as in training.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor

from benchmarks.alternation import take_turns
from benchmarks.assignment_benchmark import BATCH, K, full_matrix, peak_bytes, per_image, scene, windowed
from benchmarks.gpu.kernels import profile_of
from benchmarks.gpu.step import Record, begin
from train.build import build_criterion
from train.config import Anchors, Model
from train.geometry.anchors import anchor_grid, pyramid_levels
from train.loss.criterion import Targets
from train.trainer.compilation import CompiledCriterion, Compiler

Function = Callable[[], Tensor]
WINDOWED = "windowed"


def differing(found: Tensor, expected: Tensor) -> int:
    """The number of anchors that two assignments [B, N] give to different boxes."""
    return int((found.cpu() != expected.cpu()).sum())


def compare(record: Record, functions: Mapping[str, Function], boxes: int, expected: Tensor, limit_s: float) -> None:
    """A row for each function: time, kernels, memory, and by how many anchors it differs from the CPU's assignment.

    A function that may break ties in another way has "unstable" in its name; of any other each difference is a failure.
    """
    table, device = "assignment", torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if record.has(table, boxes=boxes):
        return
    works, memory, differ = {}, {}, {}
    for name, function in functions.items():
        with record.part(f"{table}: {name}, {boxes} boxes"):
            differ[name] = differing(function(), expected)
            memory[name] = peak_bytes(function, device) / 1e6
            works[name] = profile_of(function, device)
    seconds = take_turns({name: functions[name] for name in works}, device, rounds=15, limit_s=limit_s)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    for name, median in medians.items():
        record.row(
            table,
            boxes=boxes,
            method=name,
            microseconds=1e6 * median,
            times_windowed=median / medians.get(WINDOWED, median),
            kernels=works[name].launches,
            copies=works[name].copies,
            kernels_microseconds=works[name].microseconds,
            megabytes=memory[name],
            anchors_that_differ_from_the_cpus=differ[name],
        )
        if differ[name] and "unstable" not in name:
            record.fail(f"{table}: {name}, {boxes} boxes", f"{differ[name]} anchors differ from the CPU's assignment")


def as_cuda_graph(function: Function) -> Function:
    """The function's kernels recorded once and replayed as a CUDA graph; the result lies in the graph's memory."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        function()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = function()

    def replay() -> Tensor:
        graph.replay()
        return result

    return replay


def main() -> int:
    """Compare the assignments for each number of boxes."""
    record = begin(__doc__)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    small = record.rehearsal or device.type == "cpu"
    canvas_hw, counts, limit_s = ((96, 128), (3,), 0.0) if small else ((800, 1344), (7, 50, 200), 6.0)
    levels = pyramid_levels(canvas_hw, 5, Anchors())
    grid = anchor_grid(levels, device)
    model = Model()
    assert model.assignment.k == K
    compiled = CompiledCriterion(
        build_criterion(model), Compiler(partial(record.fail, "compiled assignment")), fixed_canvas=True
    )
    for count in counts:
        if record.has("assignment", boxes=count):
            continue
        if not record.has_time(25):
            record.skip(f"assignment: {count} boxes", "no time was left")
            continue
        boxes, mask = scene(canvas_hw, count, device)
        labels = torch.zeros((BATCH, count), dtype=torch.int64, device=device)
        expected = windowed(boxes.cpu(), mask.cpu(), levels)
        eager = partial(windowed, boxes, mask, levels, grid)
        functions: dict[str, Function] = {WINDOWED: eager}
        if device.type == "cuda":
            targets = Targets(boxes, labels, mask)
            functions["windowed, compiled"] = lambda t=targets: compiled.assign(t, canvas_hw).matched
            with record.part(f"assignment: CUDA graph, {count} boxes"):
                functions["windowed, as a CUDA graph"] = as_cuda_graph(eager)
        else:
            record.skip("compiled assignment, CUDA graph", "torch finds no CUDA device")
        functions |= {
            "full matrices, batched": partial(full_matrix, boxes, mask, levels, stable=True, grid=grid),
            "full matrices, image by image": partial(per_image, boxes, mask, levels, stable=True, grid=grid),
            "full matrices, image by image, unstable": partial(per_image, boxes, mask, levels, grid=grid),
        }
        compare(record, functions, count, expected, limit_s)
    return 0


if __name__ == "__main__":
    sys.exit(main())
