"""Receives images of other array libraries: in the memory of the backend's GPU if it takes them there, else as NumPy.

This is done in the thread that produced the image, since a library's current stream is a thread's.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..cuda import CudaError, open_cuda
from ..cuda.intake import Intake
from ..errors import UserError
from ..images.device_array import DeviceImage, check_pixels, gpu_of, host_array, is_foreign_array, is_planar
from ..images.device_canvases import PlacedImage
from ..images.preprocess import Batch, DeviceBatch
from .contract import BackendError, DeviceBackend


class Receiver:
    """Receives images for a backend. Any number of threads may use it."""

    def __init__(self, backend: object) -> None:
        self._backend = backend
        self._lock = threading.Lock()
        self._copying: dict[int, Intake] = {}  # by GPU: for images that are copied to the host
        self._is_closed = False

    @property
    def device(self) -> int | None:
        """The index of the GPU on which the backend takes images; None: it takes none there."""
        intake = self._intake()
        return None if intake is None else intake.device.index

    def image(self, value: Any, number: int) -> Any:
        """An image's array of another library as a DeviceImage or NumPy's array; any other value as it is.

        Raises UserError that names the image by `number`, also for a DeviceImage that the backend's intake didn't take;
        CudaError where CUDA is needed and cannot be opened.
        """
        if isinstance(value, DeviceImage):
            self._require_own(value, number)
        if not is_foreign_array(value):
            return value
        try:
            found = self.images(value)
        except (BackendError, CudaError):
            raise
        except UserError as error:
            raise UserError(f"image {number} is {error}") from error
        if len(found) != 1:
            raise UserError(f"image {number} is a batch of {len(found)}; give its images one by one")
        return found[0]

    def require_own(self, prepared: Sequence[Batch | DeviceBatch]) -> None:
        """Raise UserError that names an image by its place unless the backend's intake took all that lie on a GPU."""
        for number, batch in enumerate(prepared):
            for row in batch.images.rows if isinstance(batch, DeviceBatch) else ():
                if isinstance(row, PlacedImage):
                    self._require_own(row.image, number)

    def _require_own(self, image: DeviceImage, number: int) -> None:
        intake = self._intake()
        if intake is None or not intake.took(image):
            raise UserError(f"image {number} was taken by another detector; pass the array itself")

    def images(self, value: Any) -> list[np.ndarray] | list[DeviceImage]:
        """The images of an array of another library. Raises UserError, CudaError.

        It is uint8 [h, w, 3] or [B, h, w, 3], or the same in planes, [3, h, w] or [B, 3, h, w].
        """
        gpu = gpu_of(value)
        if gpu is None:
            array = host_array(value)
            check_pixels(array.dtype.name, array.shape, (3, 4), planes=True)
            if is_planar(array.shape):
                array = np.ascontiguousarray(np.moveaxis(array, -3, -1))
            return list(array) if array.ndim == 4 else [array]
        intake = self._intake()
        if intake is not None:
            return intake.take(value)
        intake = self._copier(value, gpu)
        return [intake.to_host(image) for image in intake.take(value)]

    def close(self) -> None:
        """Close what copied images to the host; copying further ones raises BackendError."""
        with self._lock:
            self._is_closed = True
            while self._copying:
                self._copying.popitem()[1].close()

    def _intake(self) -> Intake | None:
        return self._backend.intake() if isinstance(self._backend, DeviceBackend) else None

    def _copier(self, value: Any, gpu: int) -> Intake:
        with self._lock:
            if self._is_closed:
                raise BackendError("the detector was closed; open it again")
            if gpu < 0:  # the CUDA array interface does not tell
                gpu = self._opened(0).device_of(int(value.__cuda_array_interface__["data"][0]))
            return self._opened(gpu)

    def _opened(self, gpu: int) -> Intake:
        if gpu not in self._copying:
            self._copying[gpu] = Intake(open_cuda(gpu))
        return self._copying[gpu]
