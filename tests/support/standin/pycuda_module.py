"""`pycuda.driver` over the driver: objects that free themselves, contexts that are pushed and popped per thread."""

from __future__ import annotations

import ctypes
import threading
import types
from contextlib import suppress
from typing import Any

import cuda.bindings.driver as real
import numpy as np

from . import kernels, streams
from .driver import Driver
from .parts import Failure, StandinError


def make_pycuda(driver: Driver) -> types.ModuleType:
    """`pycuda`, with its module `driver`. Names, signatures and rules as in the source of 2026.1."""
    module = types.ModuleType("pycuda.driver")
    for name, value in {
        **_errors(),
        **_constants(),
        **_devices(driver),
        **_streams(driver),
        **_memory(driver),
        **_kernels(driver),
    }.items():
        setattr(module, name, value)
    package = types.ModuleType("pycuda")
    package.driver = module  # type: ignore[attr-defined]
    return package


Error = Failure


def make_library(driver: Driver) -> types.SimpleNamespace:
    """The driver's library, as far as it is called beside pycuda."""

    def cuPointerGetAttribute(data: Any, attribute: int, pointer: ctypes.c_uint64) -> int:
        assert attribute == real.CUpointer_attribute.CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL
        found = driver.holder(pointer.value)
        if found is None:
            return int(real.CUresult.CUDA_ERROR_INVALID_VALUE)
        data._obj.value = found.device
        return 0

    return types.SimpleNamespace(cuPointerGetAttribute=cuPointerGetAttribute)


class OutOfMemory(Error):
    """pycuda's error for memory that ran out."""

    pass


def _errors() -> dict[str, Any]:
    return {"Error": Error, "MemoryError": OutOfMemory, "LogicError": Error}


def _constants() -> dict[str, Any]:
    return {
        "event_flags": types.SimpleNamespace(DEFAULT=0, BLOCKING_SYNC=1, DISABLE_TIMING=2, INTERPROCESS=4),
        "host_alloc_flags": types.SimpleNamespace(PORTABLE=1, DEVICEMAP=2, WRITECOMBINED=4),
        "device_attribute": types.SimpleNamespace(CLOCK_RATE=13),
    }


def _stack(driver: Driver) -> list[Any]:
    """The contexts that this thread has pushed through pycuda."""
    if not hasattr(driver.current, "stack"):
        driver.current.stack = []
    return driver.current.stack


def _entered(driver: Driver, what: str) -> None:
    if not _stack(driver):
        raise driver.violation(f"{what} with no context pushed in this thread")


def _devices(driver: Driver) -> dict[str, Any]:
    class Context:
        """A primary context. pycuda pops the driver's own stack of contexts only for what it pushed itself."""

        def __init__(self, number: int) -> None:
            self.number, self._thread, self._is_valid = number, threading.get_ident(), True
            driver.retained[number] = driver.retained.get(number, 0) + 1

        def push(self) -> None:
            if not self._is_valid:
                raise driver.violation("a context is pushed that was detached")
            if _stack(driver):
                driver.pop_context()
            driver.push_context(self.number)
            _stack(driver).append(self)

        @staticmethod
        def pop() -> None:
            if not _stack(driver):
                raise driver.violation("cannot pop non-current context")
            driver.pop_context()
            _stack(driver).pop()
            if _stack(driver):
                driver.push_context(_stack(driver)[-1].number)

        def detach(self) -> None:
            if not self._is_valid:
                raise Error("context::detach failed: invalid device context - cannot detach from invalid context")
            self._is_valid = False
            if self not in _stack(driver)[-1:] and not self._pushed_to_detach():
                return
            driver.retained[self.number] -= 1

        def _pushed_to_detach(self) -> bool:
            """Whether pycuda makes it current to let it go. Nothing pops it afterwards."""
            if self._thread == threading.get_ident():
                driver.push_context(self.number)
                return True
            return False

        def __del__(self) -> None:
            if self._is_valid:  # the count stays: the destructor detaches as if it were not a primary context
                self._pushed_to_detach()

        @staticmethod
        def synchronize() -> None:
            _entered(driver, "Context.synchronize")
            with driver.call("Context.synchronize", forbidden_in_capture=True):
                driver.synchronize_device()

    class Device:
        def __init__(self, number: int) -> None:
            if not 0 <= number < driver.devices:
                raise Error("cuDeviceGet failed: invalid device ordinal")
            self._number = number

        @staticmethod
        def count() -> int:
            return driver.devices

        def name(self) -> str:
            return "Stand-in"

        def pci_bus_id(self) -> str:
            return driver.bus_id(self._number)

        def compute_capability(self) -> tuple[int, int]:
            return driver.compute_capability

        def total_memory(self) -> int:
            return driver.memory

        def get_attribute(self, attribute: int) -> int:
            assert attribute == 13
            return 1_500_000

        def retain_primary_context(self) -> Context:
            return Context(self._number)

    def init(flags: int = 0) -> None:
        if driver.devices == 0:
            raise Error("cuInit failed: no CUDA-capable device is detected")

    def mem_get_info() -> tuple[int, int]:
        _entered(driver, "mem_get_info")
        return driver.memory - driver.used("device"), driver.memory

    return {"Context": Context, "Device": Device, "init": init, "mem_get_info": mem_get_info}


def _streams(driver: Driver) -> dict[str, Any]:
    class Event:
        def __init__(self, flags: int = 0) -> None:
            _entered(driver, "Event")
            with driver.call("Event"):
                self._own = driver.create_event(times=not flags & 2)

        def record(self, stream: Any = None) -> Event:
            _entered(driver, "Event.record")
            with driver.call("Event.record"):
                on = driver.stream(0 if stream is None else stream.handle)
                streams.record(driver, driver.event(self._own.number), on)
            return self

        def synchronize(self) -> Event:
            with driver.call("Event.synchronize", forbidden_in_capture=True):
                streams.synchronize_event(driver, driver.event(self._own.number))
            return self

        def time_till(self, end: Event) -> float:
            with driver.call("Event.time_till"):
                return streams.milliseconds(driver, self._own, end._own)

        def __del__(self) -> None:
            with suppress(
                StandinError, AttributeError
            ):  # it stays among the driver's violations; nothing can be raised from here
                _entered(driver, "an event goes")
                with driver.call("~Event"):
                    driver.destroy(driver.event(self._own.number))

    class Stream:
        def __init__(self, flags: int = 0) -> None:
            _entered(driver, "Stream")
            if flags != 1:
                raise driver.violation("a stream that synchronizes with the default stream")
            with driver.call("Stream"):
                self._own = driver.create_stream()

        @property
        def handle(self) -> int:
            return self._own.number

        def synchronize(self) -> None:
            with driver.call("Stream.synchronize", forbidden_in_capture=True):
                streams.synchronize_stream(driver, driver.stream(self._own.number))

        def wait_for_event(self, event: Event) -> None:
            with driver.call("Stream.wait_for_event"):
                streams.wait(driver, driver.stream(self._own.number), driver.event(event._own.number))

        def __del__(self) -> None:
            with suppress(StandinError, AttributeError):  # no _own: it was never made
                _entered(driver, "a stream goes")
                with driver.call("~Stream"):
                    driver.destroy(driver.stream(self._own.number))

    return {"Event": Event, "Stream": Stream}


def _memory(driver: Driver) -> dict[str, Any]:
    class DeviceAllocation:
        def __init__(self, address: int) -> None:
            self._address = address
            self._is_free = False

        def __int__(self) -> int:
            return self._address

        def free(self) -> None:
            _entered(driver, "DeviceAllocation.free")
            with driver.call("DeviceAllocation.free"):
                driver.free(self._address, "device")
            self._is_free = True

        def __del__(self) -> None:
            with suppress(StandinError):
                if not self._is_free:
                    self.free()

    class PagelockedHostAllocation:
        def __init__(self, data: np.ndarray) -> None:
            self._data = data
            self._is_free = False
            self.__array_interface__ = data.__array_interface__

        def free(self) -> None:
            _entered(driver, "PagelockedHostAllocation.free")
            with driver.call("PagelockedHostAllocation.free"):
                driver.free(self._data.ctypes.data, "pinned")
            self._is_free = True

        def __del__(self) -> None:
            with suppress(StandinError):
                if not self._is_free:
                    self.free()

    def mem_alloc(size: int) -> DeviceAllocation:
        _entered(driver, "mem_alloc")
        with driver.call("mem_alloc"):
            allocation = driver.allocate(size, "device")
        if allocation is None:
            raise OutOfMemory("cuMemAlloc failed: out of memory")
        return DeviceAllocation(allocation.address)

    def pagelocked_empty(shape: int, dtype: Any, order: str = "C", mem_flags: int = 0) -> np.ndarray:
        _entered(driver, "pagelocked_empty")
        assert np.dtype(dtype) == np.uint8
        with driver.call("pagelocked_empty"):
            allocation = driver.allocate(shape, "pinned")
        if allocation is None:
            raise OutOfMemory("cuMemHostAlloc failed: out of memory")
        return np.asarray(PagelockedHostAllocation(allocation.data))

    def memcpy_htod_async(dest: Any, src: np.ndarray, stream: Any = None) -> None:
        _entered(driver, "memcpy_htod_async")
        with driver.call("memcpy_htod_async"):
            on = driver.stream(0 if stream is None else stream.handle)
            _contiguous(src)
            streams.copy_to_device(driver, int(dest), src.ctypes.data, src.nbytes, on)

    def memcpy_dtoh_async(dest: np.ndarray, src: Any, stream: Any = None) -> None:
        _entered(driver, "memcpy_dtoh_async")
        with driver.call("memcpy_dtoh_async"):
            on = driver.stream(0 if stream is None else stream.handle)
            _contiguous(dest)
            streams.copy_to_host(driver, dest.ctypes.data, int(src), dest.nbytes, on)

    def _contiguous(array: np.ndarray) -> None:
        if not array.flags.c_contiguous:
            raise driver.violation("a copy of an array that isn't contiguous")

    return {
        "mem_alloc": mem_alloc,
        "pagelocked_empty": pagelocked_empty,
        "memcpy_htod_async": memcpy_htod_async,
        "memcpy_dtoh_async": memcpy_dtoh_async,
    }


def _kernels(driver: Driver) -> dict[str, Any]:
    class Function:
        def __init__(self, module: Any) -> None:
            self._module = module  # keeps it loaded

        def __call__(self, *arguments: Any, grid: Any, block: Any, stream: Any) -> None:
            _entered(driver, "Function.__call__")
            assert all(isinstance(argument, np.number) for argument in arguments)
            with driver.call("Function.__call__"):
                on = driver.stream(0 if stream is None else stream.handle)
                bits = [8 * argument.itemsize for argument in arguments]
                values = [int(argument) for argument in arguments]
                kernels.run(driver, self._module.own, [*grid, *block], values, bits, on)

    class Module:
        def __init__(self, ptx: bytes) -> None:
            self.own = kernels.load(driver, ptx)

        def get_function(self, name: str) -> Function:
            assert name == kernels.KERNEL
            return Function(self)

        def __del__(self) -> None:
            with suppress(StandinError, AttributeError):
                _entered(driver, "a module goes")
                with driver.call("~Module"):
                    driver.destroy(self.own)

    def module_from_buffer(buffer: bytes) -> Module:
        _entered(driver, "module_from_buffer")
        with driver.call("module_from_buffer"):
            return Module(buffer)

    return {"module_from_buffer": module_from_buffer}
