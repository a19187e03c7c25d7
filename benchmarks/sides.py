"""Sides of a comparison of speed: functions that run a batch, and rounds in which they alternate."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from export.onnx_model.file import graph_sha256
from runtime.backends import Backend
from runtime.detections import postprocess
from runtime.manifest import METADATA_KEY, Manifest, to_json

Side = Callable[[], int]  # runs a batch and waits for it; how many detections it found


@dataclasses.dataclass
class Times:
    """Seconds of every side by round, and what each found."""

    wall: dict[str, list[float]] = dataclasses.field(default_factory=dict)
    processor: dict[str, list[float]] = dataclasses.field(default_factory=dict)
    found: dict[str, int] = dataclasses.field(default_factory=dict)


def our_side(backend: Backend, canvases: np.ndarray) -> Side:
    """A function that runs our graph on the canvases and returns the number of detections."""
    sizes = np.full((len(canvases), 2), canvases.shape[1:3], np.int32)
    thresholds = backend.manifest.thresholds
    return lambda: sum(map(len, postprocess(backend.infer(canvases, sizes), thresholds)))


def eager_side(
    model: nn.Module, photos: Sequence[Tensor], inside: Callable[[], AbstractContextManager[Any]] = nullcontext
) -> Side:
    """A function that runs torchvision's eager model and returns the number of detections.

    It runs in the context that `inside` makes, such as autocast. The number is read on the host, which waits for a GPU.
    """

    def run() -> int:
        with torch.inference_mode(), inside():
            found = model(list(photos))
        return sum(len(one["scores"].cpu()) for one in found)

    return run


def write_form(path: Path, model: onnx.ModelProto, manifest: Manifest) -> Path:
    """Write a model whose graph was put into another form, with a manifest that states its new hash."""
    text = next(entry for entry in model.metadata_props if entry.key == METADATA_KEY)
    text.value = to_json(dataclasses.replace(manifest, graph_sha256=graph_sha256(model)))
    path.write_bytes(model.SerializeToString())
    return path


def alternate(sides: Mapping[str, Side], rounds: int, failed: Callable[[str, Exception], None] | None = None) -> Times:
    """Run the sides in turn (A B C, C B A, A B C …), after a round that isn't recorded.

    `failed` is told of a side that raises, which is then left out; without it, the error is raised.
    """
    times = Times({name: [] for name in sides}, {name: [] for name in sides})
    for number in range(rounds + 1):
        names = [name for name in sides if name in times.wall]
        for name in names if number % 2 else names[::-1]:
            started, used = time.perf_counter(), time.process_time()
            try:
                times.found[name] = sides[name]()
            except Exception as error:
                if failed is None:
                    raise
                failed(name, error)
                for known in (times.wall, times.processor, times.found):
                    known.pop(name, None)
                continue
            if number:  # the first warms up
                times.wall[name].append(time.perf_counter() - started)
                times.processor[name].append(time.process_time() - used)
    return times


def times_as_fast(seconds: Mapping[str, Sequence[float]], name: str, other: str) -> float:
    """How many times as fast a side is as another: the median over rounds."""
    return statistics.median(b / a for a, b in zip(seconds[name], seconds[other], strict=True))
