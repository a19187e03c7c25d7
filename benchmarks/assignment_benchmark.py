"""Measures how much time and memory ATSS saves without [anchors × boxes] matrices.

Prints ratios and writes them as JSON:

    python benchmarks/assignment_benchmark.py --json runs/assignment.json

The baselines are the paper's Algorithm 1 with full matrices, image by image (as public implementations do it) and
batched, in the same process on the same scenes. Times are medians of alternating runs. The canvas's anchors are made
before, as in training.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import weakref
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.alternation import take_turns
from runtime.files import atomic_write
from train.assign import NEGATIVE, atss
from train.config import Anchors
from train.geometry.anchors import AnchorGrid, Level, anchor_grid, pyramid_levels
from train.geometry.boxes import centers, iou

BATCH, K = 16, 9
CPU = torch.device("cpu")


def full_matrix(
    boxes: Tensor, mask: Tensor, levels: list[Level], stable: bool = False, grid: AnchorGrid | None = None
) -> Tensor:
    """Algorithm 1 for a batch [B, G, 4] with matrices [B, G, N]; `stable` breaks ties as the windows do, but slower."""
    anchors = (anchor_grid(levels, boxes.device) if grid is None else grid).boxes
    away = (centers(anchors) - centers(boxes)[:, :, None]).square().sum(-1)  # [B, G, N]
    overlap = iou(anchors, boxes[:, :, None])
    chosen, first = [], 0
    for level in levels:
        part = away[..., first : first + level.anchors]
        count = min(K, level.anchors)
        order = torch.sort(part, stable=True).indices[..., :count] if stable else part.topk(count, largest=False)[1]
        chosen.append(order + first)
        first += level.anchors
    index = torch.cat(chosen, dim=-1)  # [B, G, K · L]
    candidate = overlap.gather(-1, index)
    threshold = candidate.mean(-1, keepdim=True) + candidate.std(-1, keepdim=True)
    point, box = centers(anchors)[index], boxes[:, :, None]
    inside = torch.cat((point - box[..., :2], box[..., 2:] - point), -1).amin(-1) > 0.01
    positive = torch.zeros_like(overlap, dtype=torch.bool)
    positive.scatter_(-1, index, (candidate >= threshold) & inside & mask[..., None])
    best, owner = torch.where(positive, overlap, -1.0).max(dim=1)
    return torch.where(best >= 0, owner, NEGATIVE)


def per_image(
    boxes: Tensor, mask: Tensor, levels: list[Level], stable: bool = False, grid: AnchorGrid | None = None
) -> Tensor:
    """Algorithm 1 with full matrices, one image after the other; returns matched [B, N]."""
    rows = [full_matrix(b[None], m[None], levels, stable, grid) for b, m in zip(boxes, mask, strict=True)]
    return torch.cat(rows)


def windowed(boxes: Tensor, mask: Tensor, levels: list[Level], grid: AnchorGrid | None = None) -> Tensor:
    """The toolkit's ATSS; returns matched [B, N]."""
    return atss(boxes, mask, levels, K, grid=grid).matched


def scene(canvas_hw: tuple[int, int], count: int, device: torch.device = CPU) -> tuple[Tensor, Tensor]:
    """Random boxes from 8 px to half the canvas, their sizes uniform in the logarithm; the same on every device."""
    generator = torch.Generator().manual_seed(count)
    bound = torch.tensor([canvas_hw[1], canvas_hw[0]], dtype=torch.float32)
    size = 8 * (bound / 16) ** torch.rand(BATCH, count, 2, generator=generator)
    low = torch.rand(BATCH, count, 2, generator=generator) * (bound - size)
    boxes, mask = torch.cat((low, low + size), dim=-1), torch.ones(BATCH, count, dtype=torch.bool)
    return boxes.to(device), mask.to(device)


def medians(functions: list[Callable[[], Any]], rounds: int) -> list[float]:
    """Seconds of each function: the median over alternating rounds, after a warm-up round."""
    turns = take_turns({str(number): function for number, function in enumerate(functions)}, CPU, rounds)
    return [statistics.median(found) for found in turns.values()]


class PeakMemory(TorchDispatchMode):
    """Counts the bytes of tensors that are made inside the block and live at the same time."""

    def __init__(self) -> None:
        super().__init__()
        self.live, self.peak, self.known = 0, 0, set[int]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else [out]:
            if isinstance(tensor, Tensor):
                self._add(tensor)
        return out

    def _add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        address, size = storage.data_ptr(), storage.nbytes()
        if address and address not in self.known:
            self.known.add(address)
            self.live += size
            self.peak = max(self.peak, self.live)
            weakref.finalize(storage, self._forget, address, size)

    def _forget(self, address: int, size: int) -> None:
        self.known.discard(address)
        self.live -= size


def peak_bytes(function: Callable[[], Any], device: torch.device = CPU) -> int:
    """The largest sum of tensor bytes that a call has alive at one moment, as the device's allocator counts them."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        function()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with PeakMemory() as memory:
        function()
    return memory.peak


def main() -> None:
    """Time both baselines and the windowed assignment on scenes of several sizes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    figures: dict[str, Any] = {"torch": torch.__version__, "batch": BATCH, "k": K, "threads": 1}
    levels = pyramid_levels((800, 1344), 5, Anchors())
    grid = anchor_grid(levels)
    for count in (7, 50, 200):
        boxes, mask = scene((800, 1344), count)
        same = torch.equal(windowed(boxes, mask, levels, grid), per_image(boxes, mask, levels, stable=True, grid=grid))
        ours, theirs, unstable = medians(
            [
                lambda b=boxes, m=mask: windowed(b, m, levels, grid),
                lambda b=boxes, m=mask: per_image(b, m, levels, stable=True, grid=grid),
                lambda b=boxes, m=mask: per_image(b, m, levels, grid=grid),
            ],
            options.rounds,
        )
        figures[f"times_faster_{count}_boxes"] = theirs / ours
        figures[f"times_faster_{count}_boxes_than_unstable"] = unstable / ours
        print(
            f"{count:4} boxes: {theirs / ours:6.1f} times faster than the same result by full matrices, image by image "
            f"({unstable / ours:.1f} than with an unstable top-k); {1e3 * ours:.1f} ms, equal: {same}",
            flush=True,
        )
    boxes, mask = scene((800, 1344), 50)
    ours, theirs = (peak_bytes(lambda f=f: f(boxes, mask, levels, grid=grid)) for f in (windowed, full_matrix))
    figures |= {"megabytes_50_boxes": ours / 1e6, "megabytes_full_matrix": theirs / 1e6}
    print(f"  50 boxes: {ours / 1e6:.0f} MB of tensors at once, full matrices batched {theirs / 1e6:.0f} MB")
    for side in (100, 400, 1344):
        boxes, mask = scene((side, side), 50)
        canvas_levels = pyramid_levels((side, side), 5, Anchors())
        search = partial(windowed, boxes, mask, canvas_levels, anchor_grid(canvas_levels))
        (seconds,) = medians([search], 3 * options.rounds)
        figures[f"ms_canvas_{side}"] = 1e3 * seconds
        print(f"{side:4} × {side}: {1e3 * seconds:.1f} ms")
    if options.json is not None:
        atomic_write(options.json, json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
