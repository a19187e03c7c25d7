"""Images/s of the deployed files in ONNX Runtime, beside torchvision's eager models; the sides of a group alternate.

A side is the network alone or the whole graph, with inputs and outputs in the device's memory, or the runtime's
backend, from canvases on the host to detections on the host. Each session keeps the memory that its largest batch took
(in float32 without TF32 cuDNN works in 36 GB at batch 8), so a group holds few sessions, and they are closed before the
next group, and before a larger batch.
"""

from __future__ import annotations

import gc
import statistics
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from benchmarks.gpu.model_files import Files, Sizes, network_file
from benchmarks.gpu.ort_sessions import bound_side, open_raw
from benchmarks.gpu.step import Record
from benchmarks.random_detectors import photographs, torchvision_model
from benchmarks.sides import Side, alternate, eager_side, our_side, times_as_fast
from runtime.backends import open_backend

NMS_COUNT = "num_detections"


class Own(NamedTuple):
    """A side of ours: a deployed file, the part of it that runs, and options of the CUDA provider."""

    file: str
    part: str = "graph"  # or "network", or "backend", which takes no options
    what: str = ""  # what the options mean
    options: tuple[tuple[str, str], ...] = ()  # in place of the backend's

    @property
    def name(self) -> str:
        """The side's name in the table."""
        return f"{self.file}{', ' * bool(self.what)}{self.what}: {self.part}"


class Group(NamedTuple):
    """What is compared. With none of torchvision's, our first side is what the others are compared with."""

    ours: tuple[Own, ...]
    theirs: tuple[str, ...] = ()  # the precisions of torchvision's models
    most: int = 16  # the largest batch whose memory all sides have at once


TF32 = Own("fp32 gpu", "graph", "TF32", (("use_tf32", "1"),))
NHWC = Own("fp16 gpu", "graph", "NHWC", (("prefer_nhwc", "1"),))
SEARCH = Own("fp16 gpu", "graph", "exhaustive search", (("cudnn_conv_algo_search", "EXHAUSTIVE"),))
FP16, INT8, FP32 = Own("fp16 gpu"), Own("int8 gpu"), Own("fp32 gpu")
# The most telling first. These run before the pipeline and the profiles.
MAIN = {
    "fp16": Group((FP16, FP16._replace(part="backend")), ("autocast", "TF32")),
    "TF32": Group((TF32,), ("TF32",)),
    "int8": Group((INT8,), ("autocast",)),
    "fp32": Group((FP32,), ("fp32", "TF32")),
    "fp32, backend": Group((FP32._replace(part="backend"),), ("fp32",)),
}
# These run after them: parts, forms for another processor, and other options.
VARIANTS = {
    "fp16, network alone": Group((FP16, FP16._replace(part="network")), most=8),
    "fp16, form": Group((FP16, Own("fp16 cpu")), most=8),
    "int8, form": Group((INT8, Own("int8 cpu")), most=8),
    "fp16, NHWC": Group((FP16, NHWC), most=8),
    "fp16, exhaustive search": Group((FP16, SEARCH), most=8),
    "TF32, network alone": Group((TF32, TF32._replace(part="network")), most=8),
    "fp32, form": Group((FP32, Own("fp32 cpu")), most=4),
    "fp32, split norms": Group((FP32, Own("fp32 gpu, split norms")), most=4),
    "fp32, network alone": Group((FP32, FP32._replace(part="network")), most=4),
}


class Setting(NamedTuple):
    """Where and how much is measured."""

    work: Path
    sizes: Sizes
    backend: str  # of the runtime: cuda, in a rehearsal cpu
    device: str  # of memory and torch: cuda or cpu
    batches: Sequence[int]
    rounds: int


def torchvision_sides(setting: Setting, images: np.ndarray) -> dict[str, Any]:
    """torchvision's models with the contexts that they run in."""
    half = partial(torch.autocast, setting.device, torch.float16 if setting.device == "cuda" else torch.bfloat16)
    # torch's convolutions in float32 use TF32 unless told otherwise.
    exact = partial(torch.backends.cudnn.flags, enabled=True, allow_tf32=False)
    found: dict[str, Any] = {}
    for kind in ("fcos", "retinanet"):
        model = torchvision_model(kind, images[:4], setting.device)
        found[f"torchvision {kind}, fp32"] = (model, exact)
        if setting.device == "cuda":
            found[f"torchvision {kind}, TF32"] = (model, nullcontext)
        found[f"torchvision {kind}, autocast"] = (model, half)
    return found


def speed(record: Record, setting: Setting, files: Files, groups: dict[str, Group], keep_s: float = 0) -> None:
    """Images/s of each group's sides at every batch. `keep_s` seconds of the step's time are left for other parts."""
    images = photographs(None, max(setting.batches), *setting.sizes.canvas_hw)
    theirs = torchvision_sides(setting, images) if any(group.theirs for group in groups.values()) else {}
    for name, group in groups.items():
        for batches in falling([batch for batch in setting.batches if batch <= group.most]):
            wanted = [batch for batch in batches if not record.has("speed", group=name, batch=batch)]
            if wanted:
                with record.part(f"speed of {name}, batches {wanted}"):
                    _measure(record, setting, files, name, group, wanted, theirs, images, keep_s)


def falling(batches: Sequence[int]) -> list[list[int]]:
    """The batches in their order, in runs without a larger batch behind a smaller one.

    A run's sessions are opened once: the memory of its first batch serves the others.
    """
    runs: list[list[int]] = []
    for batch in batches:
        if runs and batch <= runs[-1][-1]:
            runs[-1].append(batch)
        else:
            runs.append([batch])
    return runs


def _measure(
    record: Record,
    setting: Setting,
    files: Files,
    name: str,
    group: Group,
    batches: list[int],
    theirs: dict[str, Any],
    images: np.ndarray,
    keep_s: float,
) -> None:
    """Rows of a group at batches for which its sessions are opened once."""
    parts = {batch: f"speed of {name}, batch {batch}" for batch in batches}
    if record.seconds_left < keep_s + 20 + 2 * batches[0]:
        record.cut = True
        for part in parts.values():
            record.skip(part, "no time left")
        return
    beside = {side: both for side, both in theirs.items() if side.rpartition(", ")[2] in group.theirs}
    with opened(record, setting, files, group) as (raw, backends):
        for batch, part in parts.items():
            record.not_run.pop(part, None)
            if record.seconds_left < keep_s + 10 + 2 * batch:
                record.cut = True
                record.skip(part, "no time left")
                continue
            others = [*beside] or [group.ours[0].name]
            # The sides are kept in no variable: they hold the sessions.
            measure_sides(
                record, name, batch, sides_of(setting, raw, backends, beside, images[:batch]), setting.rounds, others
            )


@contextmanager
def opened(
    record: Record, setting: Setting, files: Files, group: Group
) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Sessions and backends of a group's sides by name; those that don't start are failures."""
    raw: dict[str, Any] = {}
    backends: dict[str, Any] = {}
    try:
        for own in group.ours:
            if own.file not in files.deployed:
                continue
            path = files.deployed[own.file]
            with record.part(f"opening {own.name}"):
                if own.part == "backend":
                    backends[own.name] = open_backend(path, backend=setting.backend, allow_saturation=True)
                else:
                    options = dict(own.options) if setting.backend == "cuda" else None
                    part = path if own.part == "graph" else network_file(path)
                    raw[own.name] = open_raw(part, setting.backend, options)
        yield raw, backends
    finally:
        for backend in backends.values():
            backend.close()
        backends.clear()
        raw.clear()
        gc.collect()
        if setting.device == "cuda":
            torch.cuda.empty_cache()


def sides_of(
    setting: Setting, raw: dict[str, Any], backends: dict[str, Any], theirs: dict[str, Any], images: np.ndarray
) -> dict[str, Side]:
    """All sides for a batch uint8 [B, H, W, 3]. torchvision's images lie on the device as float32."""
    sizes = np.full((len(images), 2), images.shape[1:3], np.int32)
    sides: dict[str, Side] = {}
    for name, session in raw.items():
        is_graph = name.endswith(": graph")
        feed = {"images": images, "image_sizes": sizes} if is_graph else {"images": images}
        sides[name] = bound_side(session, feed, setting.device, NMS_COUNT if is_graph else None)
    sides |= {name: our_side(backend, images) for name, backend in backends.items()}
    if theirs:
        photos = [torch.from_numpy(image).to(setting.device).permute(2, 0, 1).contiguous() / 255 for image in images]
        sides |= {name: eager_side(model, photos, inside) for name, (model, inside) in theirs.items()}
    return sides


def cuda_graphs(record: Record, setting: Setting, path: Path) -> None:
    """A whole graph beside the same one that ONNX Runtime recorded as a CUDA graph, at the first two batches.

    A recording takes a session and fixed memory for each batch. On the CPU both sides are the same.
    """
    options = {"enable_cuda_graph": "1"} if setting.backend == "cuda" else None
    group = f"CUDA graph of {path.name}"
    for batch in setting.batches[:2]:
        if record.has("speed", group=group, batch=batch):
            continue
        images = photographs(None, batch, *setting.sizes.canvas_hw)
        feed = {"images": images, "image_sizes": np.full((batch, 2), images.shape[1:3], np.int32)}
        plain, own = open_raw(path, setting.backend), open_raw(path, setting.backend, options)
        sides = {
            "plain: graph": bound_side(plain, feed, setting.device, NMS_COUNT),
            "CUDA graph: graph": bound_side(own, feed, setting.device, NMS_COUNT, fixed_by=plain),
        }
        measure_sides(record, group, batch, sides, setting.rounds, ["plain: graph"])


def measure_sides(
    record: Record, group: str, batch: int, sides: dict[str, Side], rounds: int, others: Sequence[str]
) -> None:
    """Rows of alternating sides: milliseconds, images/s, and how many times as fast as each of the sides `others`."""
    part = f"speed of {group}, batch {batch}"
    times = alternate(sides, rounds, lambda name, error: record.fail(f"{part}: {name}", str(error)[:600]))
    known = [name for name in others if name in times.wall]
    for name, seconds in times.wall.items():
        middle = statistics.median(seconds)
        ratios = {f"× {other}": times_as_fast(times.wall, name, other) for other in known}
        record.row(
            "speed",
            group=group,
            batch=batch,
            side=name,
            images_per_second=batch / middle,
            ms=1000 * middle,
            least_ms=1000 * min(seconds),
            detections=times.found[name],
            **({} if name in known else ratios),
        )
