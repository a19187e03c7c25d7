"""A stand-in for nvImageCodec: OpenCV decodes, and every decoder is for one thread."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest


class HostImage:
    """An image on the host. As with the real one, its DLPack needs a driver and only NumPy's interface works."""

    def __init__(self, pixels: np.ndarray) -> None:
        self.pixels = pixels

    @property
    def __array_interface__(self) -> dict[str, Any]:
        return self.pixels.__array_interface__

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        raise RuntimeError("Image buffer is not on device")

    def __dlpack_device__(self) -> tuple[int, int]:
        return 1, 0

    def __dlpack__(self, **_: Any) -> Any:
        raise RuntimeError("CUDA Runtime failure: '#35'")


class FakeNvImageCodec(ModuleType):
    """The module. `change` is made to the pixels; `frame` makes an image on the GPU of them."""

    def __init__(self, frame: Callable[[np.ndarray], Any] | None = None) -> None:
        super().__init__("nvidia.nvimgcodec")
        self.__version__ = "0.9.9"
        self.BackendKind = SimpleNamespace(CPU_ONLY="CPU only")
        self.Backend = lambda kind: kind
        self.change: Callable[[np.ndarray], np.ndarray | None] = lambda pixels: pixels
        self.decoded = 0
        module = self

        class Decoder:
            def __init__(self, device_id: int, max_num_cpu_threads: int, backends: Any = None) -> None:
                self.is_on_gpu = device_id >= 0
                assert self.is_on_gpu or (device_id, backends) == (-99999, ["CPU only"])
                assert max_num_cpu_threads == 1
                self.thread = threading.get_ident()

            def decode(self, data: bytes) -> Any:
                assert threading.get_ident() == self.thread, "a decoder in two threads"
                module.decoded += 1
                pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
                changed = module.change(np.ascontiguousarray(pixels[..., ::-1]))
                if changed is None:
                    return None
                return frame(changed) if self.is_on_gpu and frame is not None else HostImage(changed)

        self.Decoder = Decoder

    def install(self, monkeypatch: pytest.MonkeyPatch) -> FakeNvImageCodec:
        """Put it where it is imported from; returns it."""
        package = ModuleType("nvidia")
        package.nvimgcodec = self  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "nvidia", package)
        monkeypatch.setitem(sys.modules, "nvidia.nvimgcodec", self)
        return self
