"""The backend for engines of TensorRT and TensorRT for RTX on an NVIDIA GPU.

A call copies its inputs to pinned memory and from there to the device on a copy stream, runs the engine on a compute
stream, and copies the final detections back. Candidates are copied only for images whose NMS was not exact. Each call
has a slot with memory of its own, so that one call computes while another copies: `concurrency` threads that call
`infer` keep the GPU busy. Images that already lie in the GPU's memory are laid on their canvases there, on the copy
stream (`runtime.cuda.intake`).
"""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from ...cuda import Binding, Device, open_cuda
from ...cuda.intake import Intake
from ...detections import RawOutputs
from ...images.device_array import ForeignArray
from ...images.device_canvases import Canvases, DeviceCanvases, finished_canvases
from ...manifest import Manifest
from ...stopwatch import Stopwatch
from ..contract import BackendError, require_toolkit_interface
from ..engine_file import Profile, library_name, read_engine
from ..feeds import check_feed
from .engine import check_fits, import_tensorrt, load, make_contexts_tensorrt
from .rtx import cache_path, kernels_rtx, make_contexts_rtx, read_kernels, write_kernels
from .slot import Slot


class TrtBackend:
    """An opened engine. A context manager; closing waits for running calls.

    `device` is CUDA's index. Up to `slots` calls run at once, each with its own memory. `binding` is cuda-python or
    pycuda, which can't capture CUDA graphs; None takes the one that is installed. Each slot keeps up to `most_shapes`
    shapes prepared, and replays a CUDA graph from the second call of a shape on. The file is read once: replacing it
    later has no effect. Raises BackendError, EngineError, CudaError.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        device: int = 0,
        slots: int = 2,
        cuda_graphs: bool = True,
        binding: Binding | None = None,
        most_shapes: int = 8,
    ) -> None:
        if slots < 1 or most_shapes < 1:
            raise BackendError(f"slots {slots}, most_shapes {most_shapes}, expected at least 1 of each")
        self._path = Path(path)
        data, self._described = read_engine(path)
        require_toolkit_interface(self._described.manifest, path)
        trt = import_tensorrt(self._described.flavor)
        self._cuda = open_cuda(device, binding)
        check_fits(path, self._described, trt.__version__, self._cuda.device)
        self._changed = threading.Condition()  # guards the two below
        self._is_closed = False
        self._free: list[Slot] = []  # slots that no call uses
        self._slots: list[Slot] = []
        self._concurrency = slots
        self._intake: Intake | None = None  # None: not opened yet, or closed
        self._runtime_cache = None  # only RTX has one
        with self._cuda.current():
            try:
                loaded = load(trt, path, data, self._described)
                graphs = self._cuda.graphs if cuda_graphs else None
                if self._described.flavor == "rtx":
                    kernels = read_kernels(cache_path(path), self._described.engine_sha256)
                    make_context, self._runtime_cache = make_contexts_rtx(loaded, kernels, cuda_graphs)
                    graphs = None
                else:
                    make_context = make_contexts_tensorrt(loaded)
                self._intake = Intake(self._cuda)
                make_context = _one_at_a_time(make_context)
                for _ in range(slots):
                    self._slots.append(Slot(self._cuda, loaded, make_context, graphs, most_shapes))
            except BaseException:
                self._release()
                raise
        self._free += self._slots
        has_graphs = graphs is not None or (self._runtime_cache is not None and cuda_graphs)
        self._description = (
            f"{library_name(self._described.flavor)} {trt.__version__}, "
            f"{self._cuda.device.name}, {self._cuda.binding}, {slots} slots, "
            f"{'CUDA graphs' if has_graphs else 'no CUDA graphs'}"
        )

    @property
    def manifest(self) -> Manifest:
        """The manifest of the graph that the engine was built from."""
        return self._described.manifest

    @property
    def description(self) -> str:
        """Library and version, device, binding, slots, and whether CUDA graphs are used."""
        return self._description

    @property
    def concurrency(self) -> int:
        """The number of slots."""
        return self._concurrency

    @property
    def device(self) -> Device:
        """The GPU that the engine runs on."""
        return self._cuda.device

    def intake(self) -> Intake:
        """What takes in images that lie in this GPU's memory; see `DeviceBackend`. Raises BackendError."""
        intake = self._intake  # first: closing drops it after it has closed the backend
        self._check_open()
        assert intake is not None
        return intake

    def infer(
        self,
        images: Canvases | ForeignArray,
        image_sizes: np.ndarray,
        *,
        all_candidates: bool = False,
        stopwatch: Stopwatch | None = None,
    ) -> RawOutputs:
        """See `Backend`. Waits for a free slot. Raises BackendError, CudaError.

        `images` may also be an array uint8 [B, H, W, 3] of another library in this GPU's memory.
        """
        with self._slot() as slot:
            assert self._intake is not None  # closing waits for this call
            if not isinstance(images, np.ndarray | DeviceCanvases):
                images = finished_canvases(self._intake.take(images))
            check_feed(images, image_sizes, self.manifest)
            profile = self._choose_profile(images.shape)
            min_batch = self._described.profiles[profile].least[0]
            with self._cuda.current():
                return slot.infer(images, image_sizes, profile, min_batch, all_candidates, stopwatch, self._intake)

    def close(self) -> None:
        """Wait for running calls, then free everything. Waiting and later calls of `infer` raise BackendError."""
        with self._changed:
            if self._is_closed:
                return
            self._is_closed = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: len(self._free) == len(self._slots))
        with self._cuda.current():
            if self._described.flavor == "rtx":
                kernels = kernels_rtx(self._runtime_cache)
                write_kernels(cache_path(self._path), self._described.engine_sha256, kernels)
            self._release()
        self._cuda.close()

    def __enter__(self) -> TrtBackend:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _release(self) -> None:
        """Free the slots, and with the last one the engine. The device must be current."""
        with ExitStack() as stack:  # the other slots are freed even if one fails
            if self._intake is not None:
                stack.callback(self._intake.close)
            for slot in self._slots:
                stack.callback(slot.close)
        self._free, self._slots = [], []
        self._runtime_cache = self._intake = None

    def _check_open(self) -> None:
        if self._is_closed:
            raise BackendError(f"{self._path}: the backend was closed; open it again")

    @contextmanager
    def _slot(self) -> Iterator[Slot]:
        """A slot for one call; waits until one is free."""
        with self._changed:
            self._changed.wait_for(lambda: self._free or self._is_closed)
            self._check_open()
            slot = self._free.pop()  # the one used last: its shapes are prepared
        try:
            yield slot
        finally:
            with self._changed:
                self._free.append(slot)
                self._changed.notify_all()

    def _choose_profile(self, shape: tuple[int, ...]) -> int:
        """Index of the profile for images of this shape: the one tuned for it, or else the narrowest that takes it."""
        batch, height, width = shape[:3]
        profiles = self._described.profiles
        fitting = [index for index, profile in enumerate(profiles) if profile.takes(batch, height, width)]
        if not fitting:
            ranges = "; ".join(f"{index}: {_range(profile)}" for index, profile in enumerate(profiles))
            raise BackendError(
                f"{self._path}: batch {batch} of {width}×{height} is in none of the engine's profiles ({ranges}); "
                f"build it with --batch and --shapes that include it: {self._described.rebuild}"
            )
        return min(fitting, key=lambda i: (profiles[i].best != (batch, height, width), math.prod(profiles[i].most)))


def _one_at_a_time(make_context: Callable[[], Any]) -> Callable[[], Any]:
    """`make_context` under a lock: slots share the engine, which makes contexts in one thread at a time."""
    lock = threading.Lock()

    def make() -> Any:
        with lock:
            return make_context()

    return make


def _range(profile: Profile) -> str:
    (batch0, height0, width0), (batch1, height1, width1) = profile.least, profile.most
    return f"batch {batch0}–{batch1}, {width0}×{height0} to {width1}×{height1}"
