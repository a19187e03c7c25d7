"""The same sequences of calls on the strict stand-in and on the real driver: a part of the step `driver`.

A sequence is a function of `cuda.bindings.runtime` and `cuda.bindings.driver`. Its verdict is what it returns, or the
error of the first call that is refused. The stand-in refuses more than the driver does, which lets a race or a late
free pass; what it must not do is accept what the driver refuses, or give another value.
"""

from __future__ import annotations

import ctypes
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.gpu.driver_site import out
from runtime.cuda import intake
from tests.support.standin.install import install
from tests.support.standin.parts import StandinError

Sequence = Callable[["Api"], Any]
SIZE = 1 << 16
BROKEN, DIED = "; then every call fails: ", "the process died"

LAXER, DIFFERENT, STRICTER = "STAND-IN LAXER", "VALUES DIFFER", "stand-in stricter"
# What the stand-in refuses and the driver of an H200 (580, CUDA 13.0) accepted: calls that race, wait for nothing or
# free too early, and calls that the runtime never makes. Any other difference is a failure of the step.
EXPECTED_STRICTER = frozenset(
    {
        "cudaMalloc during a capture, mode Relaxed",
        "cudaFree during a capture, mode Relaxed",
        "cudaStreamSynchronize of an idle stream during a capture, mode Relaxed",
        "cuModuleLoadData during a capture, mode ThreadLocal",
        "An event recorded on the captured stream",
        "An allocation of no bytes",
        "A copy to the device whose target is pinned memory",
        "An asynchronous copy from memory that is not pinned",
        "A stream that waits for an event that was never recorded",
        "The host waits for an event that was never recorded",
        "Device memory freed while a copy to it is under way",
        "A stream destroyed while its copy is under way",
        "Two streams that write the same memory, unordered",
    }
)

SEQUENCES: dict[str, Sequence] = {}  # by their docstrings; driver_sequences and driver_graphs fill it


def sequence(function: Sequence) -> Sequence:
    """Register a sequence under its docstring."""
    SEQUENCES[(function.__doc__ or "").rstrip(".")] = function
    return function


class Refused(Exception):
    """A call that returned an error; the text is its name."""


class Api:
    """The two modules, with calls that raise what they return."""

    def __init__(self, is_real: bool) -> None:
        import cuda.bindings.driver as driver
        import cuda.bindings.runtime as runtime

        self.runtime, self.driver, self.is_real = runtime, driver, is_real

    def __getattr__(self, name: str) -> Any:
        module = self.driver if name.startswith("cu") and not name.startswith("cuda") else self.runtime
        function = getattr(module, name)

        def call(*arguments: Any) -> Any:
            error, *results = function(*arguments)
            if error != 0:
                raise Refused(error.name)
            return results[0] if results else None

        return call

    def stream(self) -> Any:
        """A stream that doesn't synchronise with the default stream."""
        return self.cudaStreamCreateWithFlags(self.runtime.cudaStreamNonBlocking)

    def event(self) -> Any:
        """An event that takes times."""
        return self.cudaEventCreateWithFlags(self.runtime.cudaEventBlockingSync)

    def pinned(self, size: int = SIZE) -> int:
        """Page-locked memory."""
        return int(self.cudaHostAlloc(size, self.runtime.cudaHostAllocPortable))

    def up(self, target: int, source: int, size: int, stream: Any) -> None:
        """Queue a copy to the device."""
        kind = self.runtime.cudaMemcpyKind.cudaMemcpyHostToDevice
        self.cudaMemcpyAsync(target, source, size, kind, stream)

    def down(self, target: int, source: int, size: int, stream: Any) -> None:
        """Queue a copy to the host."""
        kind = self.runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self.cudaMemcpyAsync(target, source, size, kind, stream)

    def begin(self, stream: Any, mode: str = "ThreadLocal") -> None:
        """Begin a capture."""
        modes = self.runtime.cudaStreamCaptureMode
        self.cudaStreamBeginCapture(stream, getattr(modes, f"cudaStreamCaptureMode{mode}"))

    def captured(self, stream: Any, memory: int, host: int) -> Any:
        """A graph of one copy to the device, instantiated."""
        self.begin(stream)
        self.up(memory, host, SIZE, stream)
        recorded = self.cudaStreamEndCapture(stream)
        ready = self.cudaGraphInstantiate(recorded, 0)
        self.cudaGraphDestroy(recorded)
        return ready

    def kernel(self) -> Any:
        """The kernel that lays an image on a canvas."""
        ptx = Path(intake.__file__).with_name("canvas.ptx").read_bytes()
        return self.cuModuleGetFunction(self.cuModuleLoadData(ptx + b"\0"), b"lay_on_canvas")

    def launch(self, source: int, target: int, stream: Any, side: int = 16, **wrong: Any) -> None:
        """Run the kernel over a square image that fills its canvas; `wrong` replaces what is passed on."""
        values = (source, 3 * side, 3, 1, 1, side, side, target, side, side, side, side, 0, 0)
        integer, long, address = ctypes.c_int32, ctypes.c_int64, ctypes.c_uint64
        kinds = (address, *[long] * 3, *[integer] * 3, address, *[integer] * 6)
        given = wrong.get("arguments", (values, kinds))
        block, on = wrong.get("block", (32, 8, 1)), self.driver.CUstream(int(stream))
        self.cuLaunchKernel(self.kernel(), 1, -(-side // 8), 1, *block, 0, on, given, 0)


def run_standin(name: str) -> str:
    """The verdict of a fresh stand-in."""
    monkeypatch = pytest.MonkeyPatch()
    install(monkeypatch)
    try:
        return _verdict(SEQUENCES[name], Api(is_real=False))
    finally:
        monkeypatch.undo()


def run_driver(names: list[str], is_real: bool) -> None:
    """Verdicts of the real driver, as rows. It ends at a sequence after which the driver is of no use any more."""
    if is_real:
        Api(is_real=True).cudaSetDevice(0)  # makes the context that the driver API needs
    for name in names:
        out("begins", sequence=name)
        if not is_real:
            out("verdict", sequence=name, verdict=run_standin(name))
            continue
        api = Api(is_real=True)
        verdict = _verdict(SEQUENCES[name], api)
        try:
            api.runtime.cudaGetLastError()
            api.cudaDeviceSynchronize()
            api.cudaFree(api.cudaMalloc(16))
        except Refused as error:
            out("verdict", sequence=name, verdict=f"{verdict}{BROKEN}{error}")
            sys.exit(0)
        out("verdict", sequence=name, verdict=verdict)


def _verdict(sequence: Sequence, api: Api) -> str:
    try:
        value = sequence(api)
    except (Refused, StandinError) as error:
        return f"refused: {error}"
    except Exception as error:
        return f"not comparable: {type(error).__name__}: {error}"
    return "accepted" if value is None else f"accepted: {value}"


def agreement(standin: str, driver: str) -> str:
    """How two verdicts compare."""
    if "not comparable" in standin or "not comparable" in driver:
        return "not comparable"
    first, second = (verdict.split(":")[0] for verdict in (standin, driver))
    if BROKEN in driver or driver.startswith(DIED):
        return "same" if first == "refused" else LAXER
    if first == second == "accepted":
        return "same" if standin == driver else DIFFERENT
    if first == second:
        return "same"
    return STRICTER if first == "refused" else LAXER


def unexpected(agreements: dict[str, str]) -> list[str]:
    """The sequences, with their agreement, that must not differ as they do."""
    return [
        f"{name}: {how}"
        for name, how in agreements.items()
        if how in (LAXER, DIFFERENT) or (how == STRICTER and name not in EXPECTED_STRICTER)
    ]


def host(address: int, size: int) -> np.ndarray:
    """Pinned memory as an array."""
    return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))


def in_thread(work: Callable[[], Any]) -> Any:
    """What `work` returns in another thread. Raises what it raises."""
    results: list[Any] = []

    def run() -> None:
        try:
            results.append((work(), None))
        except Exception as error:
            results.append((None, error))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(30)
    value, error = results[0]
    if error is not None:
        raise error
    return value


def pause() -> None:
    """Let queued work end without CUDA knowing that the host waits."""
    time.sleep(0.05)
