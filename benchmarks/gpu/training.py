"""Training on a GPU: losses against the CPU's, waits of the host, and steps beside torchvision's detectors.

Steps are of `atss_r50_fpn_1x` at 800 × 1344 with random weights and images, which lie on the device; torchvision's FCOS
and RetinaNet have the same backbone, images, boxes and frozen parts. Steps alternate; figures are medians.
"""

from __future__ import annotations

import gc
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch._dynamo.utils import counters
from torchvision.models.detection import FCOS, RetinaNet

from benchmarks.alternation import synchronize, take_turns
from benchmarks.gpu.criteria import compare_losses, look_for_waits
from benchmarks.gpu.kernels import largest, profile_of
from benchmarks.gpu.step import Record, begin
from benchmarks.step_benchmark import (
    PRECISIONS,
    Backbone,
    OurStep,
    Step,
    random_backbone,
    random_batch,
    their_step,
)
from train.loss.criterion import Targets
from train.trainer.compilation import CompiledNetwork

OURS = "atss_r50_fpn_1x"
# The most telling comparisons first: (batch, precision).
FIRST = [(4, "bf16"), (4, "tf32"), (4, "fp32"), (4, "fp16"), (16, "bf16")]
THEN = [(batch, precision) for precision in ("bf16", "tf32", "fp16", "fp32") for batch in (16, 8, 2)]

MOST_CALLS = 4  # steps of a turn: the host runs ahead of the GPU, as it does while training
TURN_S = 0.3  # a turn of slow steps has fewer of them


def compare_steps(
    record: Record,
    table: str,
    builders: Mapping[str, Callable[[], Step]],
    conditions: Mapping[str, Any],
    images: Tensor,
    limit_s: float,
) -> None:
    """Rows of a table: the detectors' alternating steps, with the memory of each and its time relative to the first.

    Beside the memory of our step stands what a run's estimate predicts.
    """
    if record.has(table, **conditions):
        return
    device, steps, more = images.device, dict[str, Step](), dict[str, dict[str, Any]]()
    calls = MOST_CALLS if device.type == "cuda" else 1
    for name, build in builders.items():
        part = f"{table}: {name}, " + ", ".join(f"{key} {value}" for key, value in conditions.items())
        with record.part(part):
            _free()
            before = torch.cuda.memory_allocated() if device.type == "cuda" else 0
            step = build()
            started = time.perf_counter()
            step()
            synchronize(device)
            more[name] = {"first_step_s": time.perf_counter() - started}
            step()
            synchronize(device)
            if device.type == "cuda":
                started = time.perf_counter()
                torch.cuda.reset_peak_memory_stats()
                step()
                synchronize(device)
                more[name]["peak_memory_gb"] = (torch.cuda.max_memory_allocated() - before) / 1e9
                calls = min(calls, max(1, int(TURN_S / (time.perf_counter() - started))))
            steps[name] = step
            for problem in step.problems if isinstance(step, OurStep) else []:
                record.fail(part, problem)
        step = steps.get(name)
        if isinstance(step, OurStep) and not isinstance(step.network, CompiledNetwork):
            with record.part(f"memory predicted for {part}"):
                more[name]["predicted_memory_gb"] = step.predicted_bytes() / 1e9
    seconds: dict[str, list[float]] = {}
    with record.part(f"{table}: turns, {conditions}"):
        seconds = take_turns(steps, device, rounds=8, calls=calls, limit_s=limit_s)
    first = statistics.median(next(iter(seconds.values()))) if seconds else 0
    for name, values in seconds.items():
        step, median = steps[name], statistics.median(values)
        columns: dict[str, Any] = {
            "detector": name,
            "images_per_s": len(images) / median,
            "ms": 1e3 * median,
            "times_the_first": median / first,
            "spread": (max(values) - min(values)) / median,
            "rounds": len(values),
            **more[name],
        }
        if isinstance(step, OurStep):
            columns |= {"assignment_and_losses": step.share(), "loss": step.loss.item()}
            if not step.loss.isfinite():
                record.fail(f"{table}: {name}", f"the loss became {step.loss.item()}: constants were timed")
        record.row(table, **conditions, **columns)
    steps.clear()
    _free()


def _free() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def profile_step(
    record: Record, build: Callable[[], Step], conditions: Mapping[str, Any], device: torch.device, calls: int
) -> None:
    """What takes the time of a step: operators and kernels by their time on the device."""
    if record.has("a step's work", **conditions):
        return
    with record.part("a step's work"):
        step = build()
        seconds = take_turns({"step": step}, device, rounds=1, calls=calls)["step"]
        found = profile_of(step, device, calls)
        busy = found.microseconds / (1e6 * statistics.median(seconds))
        record.row("a step's work", **conditions, kernels=found.launches, copies=found.copies, busy=busy)
        for table, works in (("operators of a step", found.operators), ("kernels of a step", found.kernels)):
            for name, work in largest(works, 12).items():
                record.row(table, **conditions, name=name, launches=work.launches, ms=work.microseconds / 1e3)


def compile_step(
    record: Record,
    images: Tensor,
    targets: Targets,
    precision: str,
    backbone: Backbone,
    limit_s: float,
    backend: str = "inductor",
) -> None:
    """Compiled steps beside the plain one, what compiling costs, and whether another canvas is compiled for again."""
    ours = partial(OurStep, images, targets, PRECISIONS[precision], backbone=backbone, backend=backend)
    conditions = {"batch": len(images), "precision": precision}
    kept: list[OurStep] = []

    def dynamic() -> Step:
        kept.append(ours(compilation="dynamic canvas"))
        return kept[0]

    builders = {"plain": ours, "compiled, dynamic canvas": dynamic}
    compare_steps(record, "compiled steps", builders, conditions, images, limit_s)
    if kept:
        with record.part("another canvas"):
            height, width = images.shape[1:3]
            kept[0].images, kept[0].targets = random_batch(len(images), (height, width - 32), images.device, boxes=9)
            seconds = []
            for _ in range(3):
                started = time.perf_counter()
                kept[0]()
                synchronize(images.device)
                seconds.append(time.perf_counter() - started)
            record.row("another canvas", **conditions, first_step_s=seconds[0], next_step_s=seconds[-1])
            _say_compiler(record, "dynamic canvas", kept[0].problems)
    kept.clear()
    if record.has("compiled steps, fixed canvas", **conditions):
        return
    if not record.has_time(120):
        record.skip("compiled steps: fixed canvas", "no time was left")
        return

    def fixed() -> Step:
        kept.append(ours(compilation="fixed canvas"))
        return kept[0]

    builders = {"plain": ours, "compiled, fixed canvas, CUDA graph": fixed}
    compare_steps(record, "compiled steps, fixed canvas", builders, conditions, images, limit_s)
    _say_compiler(record, "fixed canvas", kept[0].problems if kept else [])


def _say_compiler(record: Record, of: str, problems: list[str]) -> None:
    """What the compiler counted so far, and what it had to say."""
    skipped = counters["inductor"]["cudagraph_skips"]
    graphs = counters["stats"]["unique_graphs"]
    record.row("compiler", after=of, graphs=graphs, cuda_graphs_skipped=skipped, problems="; ".join(problems))


def main() -> int:
    """Measure what there is time for, the most telling first."""
    record = begin(__doc__)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    small = record.rehearsal or device.type == "cpu"
    canvas_hw = (64, 96) if small else (800, 1344)
    first, then = ([(1, "fp32")], []) if small else (FIRST, THEN)
    limit_s = 0.0 if small else 6.0
    torch.manual_seed(0)
    largest_batch = max(batch for batch, _ in [*first, *then])
    images, targets = random_batch(largest_batch, canvas_hw, device)
    backbone = random_backbone(images, "resnet18" if small else "resnet50")

    def part(batch: int) -> tuple[Tensor, Targets]:
        return images[:batch], Targets(*(t[:batch] for t in targets))

    def detectors(batch: int, precision: str, both_layouts: bool) -> dict[str, Callable[[], Step]]:
        given = (*part(batch), PRECISIONS[precision])
        builders: dict[str, Callable[[], Step]] = {OURS: partial(OurStep, *given, backbone=backbone)}
        for name, kind in {"torchvision FCOS": FCOS, "torchvision RetinaNet": RetinaNet}.items():
            build = partial(their_step, kind, *given, backbone=backbone)
            builders[f"{name}, channels last"] = partial(build, channels_last=True)
            if both_layouts:
                builders[name] = build
        return builders

    def steps(cases: list[tuple[int, str]], both_layouts: bool) -> None:
        for batch, precision in cases:
            if record.has("steps", batch=batch, precision=precision):
                continue
            if not record.has_time(25):
                record.skip(f"steps: batch {batch}, {precision}", "no time was left")
                continue
            builders = detectors(batch, precision, both_layouts)
            compare_steps(record, "steps", builders, {"batch": batch, "precision": precision}, images[:batch], limit_s)

    batch, precision = first[0]
    compare_losses(record, device, canvas_hw)
    looked_at = {f"step of {name}, {precision}": b for name, b in detectors(batch, precision, False).items()}
    for other in () if small else ("fp32", "fp16"):
        looked_at[f"step of {OURS}, {other}"] = detectors(batch, other, False)[OURS]
    look_for_waits(record, device, canvas_hw, looked_at)
    steps(first, both_layouts=not small)
    profile_step(
        record,
        partial(OurStep, *part(batch), PRECISIONS[precision], backbone=backbone),
        {"batch": batch, "precision": precision},
        device,
        calls=1 if small else 5,
    )
    if small:
        record.skip("compiled steps", "compiling takes minutes on a CPU")
    elif record.has("compiled steps, fixed canvas") or record.has_time(120):
        compile_step(record, *part(batch), precision, backbone, limit_s)
    else:
        record.skip("compiled steps", "no time was left")
    steps(then, both_layouts=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
