"""Puts the stand-in where the backend imports its libraries from."""

from __future__ import annotations

import gc
import sys
from dataclasses import dataclass
from typing import Literal

import pytest

from runtime.cuda import pycuda_driver

from .cudart import make_cudart
from .driver import Driver, Order
from .kernels import make_driver_api
from .pycuda_module import make_library, make_pycuda
from .trt import make_tensorrt
from .trt_context import Shared

Binding = Literal["cuda-python", "pycuda"]
LIBRARIES = ("tensorrt-10.16.1", "tensorrt-11.4.0", "rtx-1.7.1")


@dataclass(frozen=True)
class StandIn:
    """What was installed: the driver, what TensorRT's objects share, and the version's list of names."""

    driver: Driver
    shared: Shared
    names: str

    @property
    def version(self) -> str:
        return self.shared.module.__version__

    def check_end(self) -> None:
        """Raise unless every rule was kept, and nothing of CUDA's or TensorRT's is left."""
        if self.shared.alive:
            gc.collect()
        if self.shared.alive:
            left = sorted(type(thing).__name__ for thing in self.shared.alive)
            self.driver.violation(f"not freed at the end: {', '.join(left)}")
        self.driver.check_end()


def install(
    monkeypatch: pytest.MonkeyPatch,
    binding: Binding = "cuda-python",
    names: str = LIBRARIES[0],
    order: Order = "random",
    seed: int = 0,
) -> StandIn:
    """Put the stand-in of a binding and a TensorRT version into sys.modules until the test ends."""
    driver = Driver(order, seed)
    module, shared = make_tensorrt(driver, names)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    if binding == "cuda-python":
        import cuda.bindings

        driver_api = make_driver_api(driver)
        monkeypatch.setattr(cuda.bindings, "driver", driver_api)
        monkeypatch.setitem(sys.modules, "cuda.bindings.driver", driver_api)
        cudart = make_cudart(driver)
        monkeypatch.setattr(cuda.bindings, "runtime", cudart)
        monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", cudart)
    else:
        package = make_pycuda(driver)
        monkeypatch.setitem(sys.modules, "pycuda", package)
        monkeypatch.setitem(sys.modules, "pycuda.driver", package.driver)
        library = make_library(driver)
        monkeypatch.setattr(pycuda_driver, "driver_library", lambda: library)
    return StandIn(driver, shared, names)
