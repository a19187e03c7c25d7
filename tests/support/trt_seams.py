"""Wrappers around what the TensorRT backend calls, to plant defects in: they change objects, never a line of source.

Left alone they pass every call on. A defect replaces one method of a wrapper. What it needs to know, such as which
stream the network runs on, the wrappers observe: they rely on no order of creation and on no name inside the backend.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from runtime.backends.trt import backend as trt_backend
from runtime.backends.trt.backend import TrtBackend
from runtime.backends.trt.slot import Slot
from runtime.cuda import open_cuda

from .standin.install import StandIn

Method = Callable[..., Any]
Plant = Callable[["Seams"], None]


class ThisCall(threading.local):
    """What the current thread's call of `infer` has done so far; it keeps no handle alive."""

    def __init__(self) -> None:
        self.last = ""  # the method of CudaSeam that was called last
        self.waited_for = 0  # events that the host has waited for: 0 before the detections, 1 before candidates
        self.copy_stream = 0  # keys of CudaSeam.handles, here and below
        self.input_event = 0  # recorded on the copy stream, the last one
        self.network_events: list[int] = []  # recorded on the network's stream, in order
        self.copied_from = 0  # device address of the last copy to the host
        self.context: Callable[[], Any] = lambda: None  # weak reference to the context that ran last
        self.held_back: Callable[[], Any] | None = None  # a launch that a defect delays


class Seams:
    """The wrappers of one test: what was opened, and the methods that a defect replaces."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, stand_in: StandIn) -> None:
        self.monkeypatch, self.stand_in = monkeypatch, stand_in
        self.call = ThisCall()
        self.cuda: Any = None  # the CudaSeam of the backend that was opened last
        self.slots: list[Callable[[], Any]] = []  # weak references
        self.network_streams: set[int] = set()
        self.cuda_methods: dict[str, Method] = {}
        self.context_methods: dict[str, Method] = {}
        self.make_slot: Method = Slot
        monkeypatch.setattr(trt_backend, "open_cuda", self._open_cuda)
        monkeypatch.setattr(trt_backend, "Slot", self._make_slot)
        self.replace(stand_in.shared.module.ICudaEngine, "create_execution_context", self._make_context)

    def replace(self, holder: Any, name: str, replacement: Method) -> None:
        """Replace a function or method; `replacement` gets the original before the arguments."""
        original = getattr(holder, name)

        def replaced(*arguments: Any, **keywords: Any) -> Any:
            return replacement(original, *arguments, **keywords)

        replaced.__name__ = name
        self.monkeypatch.setattr(holder, name, replaced)

    def _open_cuda(self, *arguments: Any) -> Any:
        self.cuda = type("PlantedCuda", (CudaSeam,), self.cuda_methods)(self, open_cuda(*arguments))
        return self.cuda

    def _make_slot(self, *arguments: Any) -> Any:
        slot = self.make_slot(*arguments)
        self.slots.append(weakref.ref(slot))
        return slot

    def _make_context(self, original: Method, *arguments: Any) -> Any:
        return type("PlantedContext", (ContextSeam,), self.context_methods)(self, original(*arguments))


class CudaSeam:
    """`runtime.cuda.Cuda` and `Graphs` around the real ones, which are `real`."""

    def __init__(self, seams: Seams, real: Any) -> None:
        self.seams, self.real = seams, real
        self.device_memory: dict[int, Any] = {}  # by address
        self.pinned: dict[int, np.ndarray] = {}  # by address
        self.handles: dict[int, Any] = {}  # streams and events by id, until they are destroyed
        self._is_networks: dict[int, bool] = {}  # event → whether it was recorded on the network's stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)

    @property
    def call(self) -> ThisCall:
        return self.seams.call

    @property
    def graphs(self) -> CudaSeam | None:
        return None if self.real.graphs is None else self

    def runs_network(self, stream: Any) -> bool:
        """Whether a stream is one that networks run on."""
        return self.real.address(stream) in self.seams.network_streams

    def follows_network(self, event: Any) -> bool:
        """Whether an event was recorded on a stream that networks run on."""
        return self._is_networks[id(event)]

    def base(self, address: int) -> int:
        """Where the block of device memory begins that holds an address."""
        return max(start for start in self.device_memory if start <= address)

    def alloc(self, size: int) -> Any:
        memory = self.real.alloc(size)
        self.device_memory[self.real.address(memory)] = memory
        return memory

    def free(self, memory: Any) -> None:
        self.device_memory.pop(self.real.address(memory), None)
        self.real.free(memory)

    def alloc_pinned(self, size: int) -> np.ndarray:
        array = self.real.alloc_pinned(size)
        self.pinned[array.ctypes.data] = array
        return array

    def record(self, event: Any, stream: Any) -> None:
        self.real.record(event, stream)
        self.note_record(event, stream)

    def note_record(self, event: Any, stream: Any) -> None:
        self._is_networks[id(event)] = self.runs_network(stream)
        if self.runs_network(stream):
            self.call.network_events.append(id(event))
        else:
            self.call.input_event = id(event)
        self.handles[id(event)] = event
        self.call.last = "record"

    def destroy_event(self, event: Any) -> None:
        self.handles.pop(id(event), None)
        self.real.destroy_event(event)

    def destroy_stream(self, stream: Any) -> None:
        self.handles.pop(id(stream), None)
        self.real.destroy_stream(stream)

    def wait(self, stream: Any, event: Any) -> None:
        self.real.wait(stream, event)

    def synchronize_event(self, event: Any) -> None:
        self.real.synchronize_event(event)
        self.call.waited_for += 1

    def copy_to_device(self, target: int, source: np.ndarray, stream: Any) -> None:
        self.real.copy_to_device(target, source, stream)
        if self.call.last != "copy_to_device":  # the first of a call
            self.call.waited_for, self.call.network_events = 0, []
        self.call.last, self.call.copy_stream = "copy_to_device", id(stream)
        self.handles[id(stream)] = stream

    def copy_to_host(self, target: np.ndarray, source: int, stream: Any) -> None:
        self.real.copy_to_host(target, source, stream)
        self.call.last, self.call.copied_from = "copy_to_host", source

    def end_capture(self, stream: Any) -> Any:
        return self.real.end_capture(stream)


class ContextSeam:
    """An execution context around the real one, which is `real`."""

    def __init__(self, seams: Seams, real: Any) -> None:
        self.seams, self.real = seams, real
        self.addresses: dict[str, int] = {}
        self.has_run = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)

    def set_optimization_profile_async(self, profile: int, stream: int) -> bool:
        self.seams.network_streams.add(stream)
        return self.real.set_optimization_profile_async(profile, stream)

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return self.real.set_tensor_address(name, address)

    def execute_async_v3(self, stream: int) -> bool:
        self.seams.network_streams.add(stream)
        self.seams.call.context, self.has_run = weakref.ref(self), True
        return self.real.execute_async_v3(stream)


def in_cuda(**methods: Method) -> Plant:
    """A defect in methods of the seam to CUDA: functions of (CudaSeam, arguments …)."""
    return lambda seams: seams.cuda_methods.update(methods)


def in_context(**methods: Method) -> Plant:
    """A defect in methods of execution contexts: functions of (ContextSeam, arguments …)."""
    return lambda seams: seams.context_methods.update(methods)


def in_slots(make: Method) -> Plant:
    """A defect in how slots are made; `make` gets the seams and the arguments of `Slot`."""

    def plant(seams: Seams) -> None:
        seams.make_slot = lambda *arguments: make(seams, *arguments)

    return plant


def in_engine(name: str, replacement: Method) -> Plant:
    """A defect in a method of TensorRT's engine, such as making contexts."""
    return lambda seams: seams.replace(seams.stand_in.shared.module.ICudaEngine, name, replacement)


def in_trt_runtime(name: str, replacement: Method) -> Plant:
    """A defect in a method of TensorRT's Runtime."""
    return lambda seams: seams.replace(seams.stand_in.shared.module.Runtime, name, replacement)


def in_backend(name: str, replacement: Method) -> Plant:
    """A defect in a method of the backend; `replacement` gets the seams before the original method."""
    return lambda seams: seams.replace(
        TrtBackend, name, lambda original, *arguments, **keywords: replacement(seams, original, *arguments, **keywords)
    )


def in_cudart(name: str, replacement: Method) -> Plant:
    """A defect in what reaches a function of cuda-python."""

    def plant(seams: Seams) -> None:
        import cuda.bindings

        seams.replace(cuda.bindings.runtime, name, replacement)

    return plant


def in_pycuda(path: str, replacement: Method) -> Plant:
    """A defect in what reaches pycuda; `path` is a function's or method's within `pycuda.driver`."""

    def plant(seams: Seams) -> None:
        import pycuda.driver

        holder: Any = pycuda.driver
        *parents, name = path.split(".")
        for parent in parents:
            holder = getattr(holder, parent)
        seams.replace(holder, name, replacement)

    return plant


def together(*plants: Plant) -> Plant:
    """One defect of several parts."""

    def plant(seams: Seams) -> None:
        for each in plants:
            each(seams)

    return plant
