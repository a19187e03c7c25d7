"""Takes images that already lie in a GPU's memory: waits for their producers, and lays them on canvases there.

Nothing here blocks the host, except `fill_and_wait` and `to_host`. An image's pixels are read after its event `ready`,
and the caller keeps the image until that has been waited for: its memory may go with it.
"""

from __future__ import annotations

import threading
from collections import deque
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import UserError
from ..images.device_array import DeviceImage, gpu_of, read_device_array
from ..images.device_canvases import DeviceCanvases, PlacedImage
from .contract import Cuda, CudaError, Device

_KERNEL = Path(__file__).with_name("canvas.ptx")  # compiled by benchmarks/compile_kernels.py
_BLOCK = (32, 8)  # threads along a row and a column


class Intake:
    """Images of one device, taken in and laid on canvases through one binding. Any number of threads may use it."""

    def __init__(self, cuda: Cuda) -> None:
        self._cuda = cuda
        self._taking = threading.Lock()  # guards the stream of arrivals; taken before the next
        self._lock = threading.Lock()  # guards the work stream and its pinned memory
        self._is_closed = False  # set under both
        self._staging: np.ndarray | None = None  # pinned memory, grown as needed
        self._making = threading.Lock()  # guards what is made when first needed: the kernel and events
        self._kernel: Any = None
        self._events: list[Any] = []
        self._pool: deque[int] = deque()  # indices of events that no image uses
        with cuda.current(), ExitStack() as stack:
            self._arrivals = cuda.create_stream()  # held back by what producers have queued
            stack.callback(cuda.destroy_stream, self._arrivals)
            self._work = cuda.create_stream()
            stack.pop_all()

    @property
    def device(self) -> Device:
        """The GPU on which images are taken."""
        return self._cuda.device

    def device_of(self, address: int) -> int:
        """CUDA's index of the GPU that memory lies on."""
        with self._cuda.current():
            return self._cuda.device_of(address)

    def take(self, value: Any) -> list[DeviceImage]:
        """The images of an array uint8 [h, w, 3] or [B, h, w, 3] on this device. Raises UserError, CudaError.

        Call it in the thread that produced the array: a library's current stream is a thread's.
        """
        cuda = self._cuda
        gpu = gpu_of(value)
        if gpu is None:
            raise UserError(
                f"a {type(value).__name__} that lies on the host, expected an array in a GPU's memory; give it as "
                "NumPy's array"
            )
        if gpu >= 0:
            self._require_here(gpu)  # before its library is given a stream of another GPU
        with self._taking, cuda.current():
            self._require_open()
            array = read_device_array(value, cuda.address(self._arrivals))
            device = array.device if array.device is not None else cuda.device_of(array.address)
            self._require_here(device)
            number = self._event()
            event = self._events[number]
            if array.stream is not None:
                cuda.follow(self._arrivals, array.stream, event)
            cuda.record(event, self._arrivals)
        return array.images(device, _Ready(number, self._pool))

    def took(self, image: DeviceImage) -> bool:
        """Whether this intake took the image. No other may read it: the image's event is one of its intake's."""
        return isinstance(image.ready, _Ready) and image.ready.pool is self._pool

    def _require_open(self) -> None:
        if self._is_closed:
            raise CudaError(f"what takes images on GPU {self._cuda.device.index} was closed; open the model again")

    def _require_here(self, device: int) -> None:
        """Raise UserError unless `device` is the one on which images are taken."""
        if device != self._cuda.device.index:
            raise UserError(
                f"on GPU {device}, but the model runs on GPU {self._cuda.device.index}; copy the image there, or open "
                f"the model on GPU {device} (device={device})"
            )

    def fill(self, canvases: DeviceCanvases, target: int, pinned: np.ndarray, stream: Any) -> None:
        """Queue the making of all canvases at a device address, uint8 [B, H, W, 3]. The device must be current.

        Finished canvases go through `pinned`, which has that shape and stays in use until waited for.
        """
        for index, row in enumerate(canvases.rows):
            address = target + index * pinned[index].nbytes
            if isinstance(row, PlacedImage):
                self._lay(row, canvases, address, stream)
            else:
                np.copyto(pinned[index], row)
                self._cuda.copy_to_device(address, pinned[index], stream)

    def fill_and_wait(self, canvases: DeviceCanvases, target: int) -> None:
        """Make all canvases at a device address, uint8 [B, H, W, 3], and wait for it. Raises UserError, CudaError."""
        with self._lock, self._cuda.current():
            self._require_open()
            size = len(canvases) * int(np.prod(canvases.shape[1:]))
            pinned = self._pinned(size).reshape(canvases.shape)
            try:
                self.fill(canvases, target, pinned, self._work)
            finally:
                self._cuda.synchronize_stream(self._work)

    def to_host(self, image: DeviceImage) -> np.ndarray:
        """A copy of an image in host memory, uint8 [h, w, 3]. Raises UserError, CudaError."""
        self._require_own(image)
        if 0 in image.size_hw:
            return np.empty((*image.size_hw, 3), np.uint8)
        steps = [(side - 1) * stride for side, stride in zip((*image.size_hw, 3), image.strides, strict=True)]
        before, after = -sum(min(step, 0) for step in steps), sum(max(step, 0) for step in steps)
        with self._lock, self._cuda.current():
            self._require_open()
            pinned = self._pinned(before + after + 1)
            try:
                self._cuda.wait(self._work, self._events[image.ready.number])
                self._cuda.copy_to_host(pinned, image.address - before, self._work)
            finally:
                self._cuda.synchronize_stream(self._work)
            return np.lib.stride_tricks.as_strided(pinned[before:], (*image.size_hw, 3), image.strides).copy()

    def close(self) -> None:
        """Wait for calls and queued work, and free everything, images' events included. Later calls raise CudaError."""
        with self._taking, self._lock, self._cuda.current():
            if not self._is_closed:
                self._is_closed = True
                self._free()

    def _free(self) -> None:
        """Free everything. No reference is left: with the last one pycuda destroys an object, in the current device."""
        cuda = self._cuda
        with ExitStack() as stack:  # the others are freed even if one fails
            if self._kernel is not None:
                stack.callback(cuda.unload_kernel, self._kernel)
            if self._staging is not None:
                stack.callback(cuda.free_pinned, self._staging)
            for event in self._events:
                stack.callback(cuda.destroy_event, event)
            for stream in (self._arrivals, self._work):
                stack.callback(cuda.destroy_stream, stream)
                stack.callback(cuda.synchronize_stream, stream)
        self._events, self._staging, self._kernel = [], None, None
        del self._arrivals, self._work

    def _require_own(self, image: DeviceImage) -> None:
        if not self.took(image):
            raise UserError("an image was taken by another detector; pass the array itself")

    def _lay(self, placed: PlacedImage, canvases: DeviceCanvases, target: int, stream: Any) -> None:
        cuda, image = self._cuda, placed.image
        self._require_own(image)
        cuda.wait(stream, self._events[image.ready.number])
        height, width = (side // placed.by for side in image.size_hw)
        is_halved = (height, width) == (2 * placed.resized_hw[0], 2 * placed.resized_hw[1])
        red, green, blue = canvases.pad_value
        integers = np.array(
            [*canvases.canvas_hw, *placed.resized_hw, is_halved, red | green << 8 | blue << 16], np.int32
        )
        arguments = [
            np.uint64(image.address),
            *np.array(image.strides, np.int64),
            *np.array([placed.by, height, width], np.int32),
            np.uint64(target),
            *integers,
        ]
        grid = tuple(-(-side // block) for side, block in zip(canvases.canvas_hw[::-1], _BLOCK, strict=True))
        cuda.run_kernel(self._loaded(), (grid[0], grid[1]), _BLOCK, arguments, stream)

    def _loaded(self) -> Any:
        with self._making:
            if self._kernel is None:
                self._kernel = self._cuda.load_kernel(_KERNEL.read_bytes(), "lay_on_canvas")
            return self._kernel

    def _event(self) -> int:
        """The index of an event that no image uses."""
        with suppress(IndexError):
            return self._pool.popleft()
        with self._making:
            self._events.append(self._cuda.create_event())
            return len(self._events) - 1

    def _pinned(self, size: int) -> np.ndarray:
        """Pinned memory of this size, which nothing uses; the caller holds the lock."""
        if self._staging is None or len(self._staging) < size:
            if self._staging is not None:
                self._cuda.free_pinned(self._staging)
                self._staging = None
            self._staging = self._cuda.alloc_pinned(size)
        return self._staging[:size]


class _Ready:
    """Stands for an event, which returns to its pool when no image needs it any more.

    It holds no event itself: an image may outlive the intake.
    """

    def __init__(self, number: int, pool: deque[int]) -> None:
        self.number = number
        self.pool = pool

    def __del__(self) -> None:
        self.pool.append(self.number)
