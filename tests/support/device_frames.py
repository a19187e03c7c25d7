"""Arrays of another library in the memory of the stand-in's GPU, as a decoder on the GPU makes them."""

from __future__ import annotations

import ctypes
import gc
from typing import Any, Literal

import numpy as np

from runtime.images.device_array import Tensor, Versioned

from .standin import streams
from .standin.driver import Driver
from .standin.install import StandIn
from .standin.parts import Access, Operation, StandinError

Protocol = Literal["dlpack", "dlpack 1", "interface 3", "interface 2"]
PROTOCOLS: tuple[Protocol, ...] = ("dlpack", "dlpack 1", "interface 3", "interface 2")
DECODE_SECONDS = 0.001


class Producer:
    """Decodes frames on a stream of its own, late, into memory that is freed with the frame."""

    def __init__(self, driver: Driver, device: int = 0) -> None:
        self.driver, self.device = driver, device
        with driver.lock:
            before, driver.current.device = driver.device(), device
            self.stream = driver.create_stream(is_blocking=True)
            driver.current.device = before

    def frame(self, pixels: np.ndarray, protocol: Protocol, **broken: Any) -> Any:
        """An array of these pixels, with their strides; `broken` are attributes to replace."""
        kind = {"interface": InterfaceFrame, "dlpack": DlpackFrame}[protocol.split()[0]]
        return kind(self, pixels, protocol, **broken)

    def close(self) -> None:
        """Wait for all frames, and end."""
        with self.driver.lock:
            self.driver.current.device, before = self.device, self.driver.device()
            streams.synchronize_stream(self.driver, self.stream)
            self.driver.destroy(self.stream)
            self.driver.current.device = before


class _Frame:
    """Memory that a queued decode fills. It is freed with the last reference, as CUDA's own arrays are."""

    def __init__(self, producer: Producer, pixels: np.ndarray, protocol: Protocol, **broken: Any) -> None:
        self.producer, self.protocol, self.broken = producer, protocol, broken
        self.sides, self.strides, self.dtype = pixels.shape, pixels.strides, pixels.dtype
        steps = [(side - 1) * stride for side, stride in zip(pixels.shape, pixels.strides, strict=True)]
        before, size = -sum(min(step, 0) for step in steps), sum(map(abs, steps)) + pixels.itemsize
        if 0 in pixels.shape:
            before, size = 0, 1
        driver = producer.driver
        with driver.lock:
            previous, driver.current.device = driver.device(), producer.device
            allocation = driver.allocate(size, "device")
            assert allocation is not None
            self.base, self.address = allocation.address, allocation.address + before

            def decode() -> None:
                flat = allocation.data[before:].view()
                np.lib.stride_tricks.as_strided(flat.view(pixels.dtype), pixels.shape, pixels.strides)[:] = pixels

            self.decode = Operation("a decode", producer.stream, [Access(allocation, 0, size, True)], decode)
            self.decode.seconds = DECODE_SECONDS
            driver.queue(producer.stream, self.decode)
            driver.current.device = previous

    def __del__(self) -> None:
        driver = self.producer.driver
        with driver.lock:
            previous, driver.current.device = driver.device(), self.producer.device
            try:
                driver.wait_for(self.decode)  # the producer's allocator knows its own work, not the consumer's
                driver.free(self.base, "device")
            except StandinError:
                pass  # it stays among the driver's violations; nothing can be raised from here
            finally:
                driver.current.device = previous


class InterfaceFrame(_Frame):
    """With the CUDA array interface. Version 2 names no stream."""

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        version = int(self.protocol[-1])
        described = {
            "shape": self.sides,
            "typestr": self.dtype.str,
            "data": (self.address, True),
            "strides": self.strides,
            "version": version,
        }
        if version == 3:
            described["stream"] = self.producer.stream.number
        return described | self.broken


class DlpackFrame(_Frame):
    """With DLPack, before its version 1 or of it; the work is ordered before the consumer's stream, as torch does."""

    @property
    def shape(self) -> tuple[int, ...]:
        return self.sides

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.broken.get("device", (2, self.producer.device))

    def __dlpack__(self, *, stream: int, **options: Any) -> Any:
        is_versioned = self.protocol == "dlpack 1"
        if options and not is_versioned:
            raise TypeError("__dlpack__() got an unexpected keyword argument 'max_version'")
        if "raises" in self.broken:
            raise BufferError(self.broken["raises"])
        driver = self.producer.driver
        if stream != -1:  # which stands for a consumer that needs no order
            with driver.lock:
                event = driver.create_event(times=False)
                streams.record(driver, event, self.producer.stream)
                streams.wait(driver, driver.stream(stream), event)
                del driver.handles[event.number]  # CUDA keeps a destroyed event until it has happened
        self._keep = managed = Versioned() if is_versioned else Tensor()
        tensor = managed.tensor if isinstance(managed, Versioned) else managed
        tensor.data, tensor.byte_offset = self.base, self.address - self.base
        tensor.device_type, tensor.device_id = self.broken.get("memory", self.__dlpack_device__())
        tensor.ndim, tensor.lanes = len(self.sides), 1
        tensor.code, tensor.bits = {"u": 1, "f": 2, "i": 0}[self.dtype.kind], 8 * self.dtype.itemsize
        tensor.shape = (ctypes.c_int64 * tensor.ndim)(*self.sides)
        if not self.broken.get("without_strides"):
            elements = [stride // self.dtype.itemsize for stride in self.strides]
            tensor.strides = (ctypes.c_int64 * tensor.ndim)(*elements)
        self._name = b"dltensor_versioned" if is_versioned else b"dltensor"
        return _new_capsule(ctypes.addressof(managed), self._name, None)


class BareFrame:
    """A frame that speaks DLPack and has nothing else, no shape in particular."""

    def __init__(self, frame: DlpackFrame) -> None:
        self._frame = frame

    def __dlpack_device__(self) -> tuple[int, int]:
        return self._frame.__dlpack_device__()

    def __dlpack__(self, *, stream: int, **options: Any) -> Any:
        return self._frame.__dlpack__(stream=stream, **options)


_new_capsule = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)(
    ("PyCapsule_New", ctypes.pythonapi)
)


def finish(stand_in: StandIn, *producers: Producer) -> None:
    """End the producers, and check that nothing of theirs or of the toolkit's is left on the device."""
    gc.collect()
    for producer in producers:
        producer.close()
    stand_in.check_end()
