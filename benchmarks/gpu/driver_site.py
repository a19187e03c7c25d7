"""Where the parts of the step `driver` run: on the real driver, or on the strict stand-in for it.

Both have TensorRT with a network that computes a known function. On a GPU it is made of kernels.
"""

from __future__ import annotations

import dataclasses
import gc
import json
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtime.backends.engine_file import Profile
from runtime.cuda import Binding, Cuda, open_cuda
from runtime.manifest import InputShapes
from tests.support.engines import write_standin_engine
from tests.support.fakes import manifest_with
from tests.support.standin.install import StandIn, install
from tests.support.standin.trt_on_gpu import install_on_gpu

MARK = "ROW\t"  # begins a line of a part's process that holds a row
LARGEST = (64, 512, 512)  # batch, height and width of the canvases that the engine takes


def out(table: str, **columns: Any) -> None:
    """Hand a row to the process that started this one."""
    print(MARK + json.dumps({"table": table, "columns": columns}), flush=True)


@contextmanager
def check(table: str, name: str, **conditions: Any) -> Iterator[dict[str, Any]]:
    """A row that says whether what is done inside succeeds; what is put into the dictionary are more columns.

    It goes on after a failure. The traceback is dropped: it would keep CUDA's objects. A check that can't be done here
    puts "not run: WHY" into `result`.
    """
    more: dict[str, Any] = {}
    began, result = time.perf_counter(), "ok"
    try:
        yield more
    except Exception as error:
        more.pop("result", None)
        last = traceback.extract_tb(error.__traceback__)[-1]
        text = " ".join(str(error).split())[:300]
        result = f"FAILED: {type(error).__name__}: {text} ({Path(last.filename).name}, line {last.lineno})"
    seconds = round(time.perf_counter() - began, 3)
    out(table, **{**conditions, "check": name, "result": result, "seconds": seconds, **more})


@dataclass
class Site:
    """A binding on a driver, with TensorRT over it."""

    binding: Binding
    is_real: bool
    is_small: bool
    monkeypatch: pytest.MonkeyPatch
    stand_in: StandIn  # on the real driver only TensorRT is one
    compute_capability: str
    held: Cuda | None = None  # keeps the context of the real network's kernels alive

    def cuda(self) -> Cuda:
        """The device, opened again."""
        return open_cuda(0, self.binding)

    def engine(self, folder: Path) -> Path:
        """An engine on disk whose profile takes canvases up to LARGEST."""
        batch, height, width = LARGEST
        return write_standin_engine(
            folder,
            self.stand_in,
            (Profile((1, 32, 32), (4, 128, 128), LARGEST),),
            manifest=manifest_with(inputs=InputShapes(1, batch, 32, height, 32, width)),
            compute_capabilities=(self.compute_capability,),
        )

    def delay(self, cycles: int) -> None:
        """Let the network of a real GPU last that many cycles of its clock longer."""
        shared: Any = self.stand_in.shared
        shared.delay_cycles = cycles

    def close(self) -> None:
        """Check that nothing is left, and let the device go."""
        gc.collect()
        with check("driver: left at the end", "nothing left", binding=self.binding):
            self.stand_in.check_end()
        if self.held is not None:
            with self.held.current():
                self.stand_in.shared.kernels.close()  # type: ignore[attr-defined]
            self.held.close()
        self.monkeypatch.undo()


def open_site(binding: Binding, is_real: bool, is_small: bool) -> Site:
    """The real driver or the stand-in. Raises CudaError, and RuntimeError where the network doesn't compile."""
    monkeypatch = pytest.MonkeyPatch()
    if not is_real:
        stand_in = install(monkeypatch, binding)
        major, minor = stand_in.driver.compute_capability
        return Site(binding, is_real, is_small, monkeypatch, stand_in, f"{major}.{minor}")
    cuda = open_cuda(0, binding)
    with cuda.current():
        stand_in = install_on_gpu(monkeypatch, cuda.device.compute_capability)
    return Site(binding, is_real, is_small, monkeypatch, stand_in, cuda.device.compute_capability, cuda)


@dataclass
class Frame:
    """Device memory with the CUDA array interface; `stream` is the one that makes its pixels."""

    address: int
    shape: tuple[int, ...]
    stream: int
    memory: Any  # to free

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        data = {"data": (self.address, True), "typestr": "|u1", "strides": None}
        return {"shape": self.shape, "stream": self.stream, "version": 3, **data}


class Producer:
    """Makes frames on a stream of its own, through the binding under test."""

    def __init__(self, cuda: Cuda) -> None:
        self.cuda = cuda
        with cuda.current():
            self.stream = cuda.create_stream()
        self._made: list[tuple[Any, np.ndarray]] = []

    def frame(self, pixels: np.ndarray) -> Frame:
        """A frame whose copy to the device is queued."""
        cuda = self.cuda
        with cuda.current():
            memory, pinned = cuda.alloc(pixels.nbytes), cuda.alloc_pinned(pixels.nbytes)
            pinned[:] = pixels.ravel()
            cuda.copy_to_device(cuda.address(memory), pinned, self.stream)
            self._made.append((memory, pinned))
            return Frame(cuda.address(memory), pixels.shape, cuda.address(self.stream), memory)

    def close(self) -> None:
        """Wait, and free all frames; what reads them must have ended."""
        cuda = self.cuda
        with cuda.current():
            cuda.synchronize_stream(self.stream)
            for memory, pinned in self._made:
                cuda.free(memory)
                cuda.free_pinned(pinned)
            cuda.destroy_stream(self.stream)
            del self.stream
            self._made.clear()


def equal(given: Any, wanted: Any) -> bool:
    """Whether two results have the same bits in every output."""
    return all(
        np.array_equal(getattr(given, field.name), getattr(wanted, field.name)) for field in dataclasses.fields(wanted)
    )
