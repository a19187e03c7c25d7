"""Images/s of the deployed files in ONNX Runtime, beside torchvision's eager models; all sides alternate.

Of each precision: the network alone and the whole graph, both with inputs and outputs in the device's memory, and the
runtime's backend, from canvases on the host to detections on the host.
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
GROUPS = {  # the sides of a comparison; the sessions of one fit a GPU's memory together
    "fp32": ("fp32 gpu", "fp32 cpu", "fp32 gpu, split norms"),
    "half": ("fp16 gpu", "fp16 cpu", "bf16 gpu"),
    "int8": ("int8 gpu", "int8 cpu"),
}
VARIANTS = {  # of a group's first file: other options of the CUDA provider than the backend's
    "fp32": {"TF32": {"use_tf32": "1"}},
    "half": {"NHWC": {"prefer_nhwc": "1"}, "exhaustive search": {"cudnn_conv_algo_search": "EXHAUSTIVE"}},
    "int8": {},
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


def speed(record: Record, setting: Setting, files: Files) -> None:
    """Images/s of network, whole graph and backend, beside torchvision's eager models; the sides alternate."""
    images = photographs(None, max(setting.batches), *setting.sizes.canvas_hw)
    theirs = torchvision_sides(setting, images)
    for group, names in GROUPS.items():
        known = {name: files.deployed[name] for name in names if name in files.deployed}
        with record.part(f"speed of {group}"), opened(record, setting, group, known) as (raw, backends):
            for batch in setting.batches:
                if record.has("speed", group=group, batch=batch):
                    continue
                if not record.has_time(10 + 2 * batch):
                    record.skip(f"speed of {group}, batch {batch}", "no time left")
                    continue
                sides = sides_of(setting, raw, backends, theirs, images[:batch])
                measure_sides(record, group, batch, sides, setting.rounds)


@contextmanager
def opened(
    record: Record, setting: Setting, group: str, files: dict[str, Path]
) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Sessions of networks and whole graphs, and backends of a group's files; those that don't start are failures."""
    raw: dict[str, Any] = {}
    backends: dict[str, Any] = {}
    for number, (name, path) in enumerate(files.items()):
        with record.part(f"opening {name}"):
            raw[f"{name}: graph"] = open_raw(path, setting.backend)
            if number == 0 or name.startswith("bf16"):  # the others share the network
                raw[f"{name}: network"] = open_raw(network_file(path), setting.backend)
                backends[f"{name}: backend"] = open_backend(path, backend=setting.backend, allow_saturation=True)
        for variant, options in VARIANTS[group].items() if number == 0 else ():
            with record.part(f"opening {name}, {variant}"):
                known = options if setting.backend == "cuda" else None
                raw[f"{name}, {variant}: network"] = open_raw(network_file(path), setting.backend, known)
                raw[f"{name}, {variant}: graph"] = open_raw(path, setting.backend, known)
    try:
        yield raw, backends
    finally:
        for backend in backends.values():
            backend.close()
        raw.clear()
        gc.collect()
        if setting.device == "cuda":
            torch.cuda.empty_cache()


def sides_of(
    setting: Setting, raw: dict[str, Any], backends: dict[str, Any], theirs: dict[str, Any], images: np.ndarray
) -> dict[str, Side]:
    """All sides for a batch uint8 [B, H, W, 3]. torchvision's images lie on the device as float32."""
    sizes = np.full((len(images), 2), images.shape[1:3], np.int32)
    photos = [torch.from_numpy(image).to(setting.device).permute(2, 0, 1).contiguous() / 255 for image in images]
    sides: dict[str, Side] = {}
    for name, session in raw.items():
        is_graph = name.endswith(": graph")
        feed = {"images": images, "image_sizes": sizes} if is_graph else {"images": images}
        sides[name] = bound_side(session, feed, setting.device, NMS_COUNT if is_graph else None)
    sides |= {name: our_side(backend, images) for name, backend in backends.items()}
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
        measure_sides(record, group, batch, sides, setting.rounds)


def measure_sides(record: Record, group: str, batch: int, sides: dict[str, Side], rounds: int) -> None:
    """Rows of alternating sides: milliseconds, images/s, and how many times as fast as each of torchvision's."""
    part = f"speed of {group}, batch {batch}"
    times = alternate(sides, rounds, lambda name, error: record.fail(f"{part}: {name}", str(error)[:600]))
    others = [name for name in times.wall if name.startswith("torchvision")]
    for name, seconds in times.wall.items():
        middle = statistics.median(seconds)
        ratios = {f"× {other}": times_as_fast(times.wall, name, other) for other in others}
        record.row(
            "speed",
            group=group,
            batch=batch,
            side=name,
            images_per_second=batch / middle,
            ms=1000 * middle,
            least_ms=1000 * min(seconds),
            detections=times.found[name],
            **({} if name in others else ratios),
        )
