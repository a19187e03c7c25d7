"""Recognises images that already lie in a GPU's memory, by the two protocols that array libraries share.

DLPack (`__dlpack__`, `__dlpack_device__`) is what torch, CuPy, JAX and nvImageCodec offer; it lets the producer order
its work before a stream of ours. The CUDA array interface (`__cuda_array_interface__`, numba, pycuda) names the
producer's stream instead. No array library is imported here.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import numpy as np

from ..errors import UserError

# Device types of DLPack.
_CUDA, _CUDA_MANAGED = 2, 13
_HOST = (1, 3)  # plain and page-locked
_LEGACY_STREAM = 1  # CUDA's default stream, which waits for all streams that don't forbid it
_NO_STREAM = -1  # DLPack's: the producer need not order its work before anything
_KINDS = {0: "int", 1: "uint", 2: "float", 4: "bfloat", 5: "complex", 6: "bool"}


class Dlpack(Protocol):
    """An array of a library that speaks DLPack."""

    def __dlpack__(self, *, stream: Any = ...) -> Any: ...

    def __dlpack_device__(self) -> tuple[Any, Any]: ...


class CudaArray(Protocol):
    """An array with the CUDA array interface."""

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]: ...


ForeignArray: TypeAlias = "Dlpack | CudaArray"


@dataclass(frozen=True, eq=False)
class DeviceImage:
    """An image in a GPU's memory, uint8 [h, w, 3] RGB with any strides. It keeps its memory alive."""

    address: int
    strides: tuple[int, int, int]  # bytes from row to row, from pixel to pixel, from channel to channel
    size_hw: tuple[int, int]
    device: int  # CUDA's index
    ready: Any  # stands for the event after which the pixels may be read (`runtime.cuda.intake`)
    owner: Any


@dataclass(frozen=True, eq=False)
class DeviceArray:
    """What a producer says of its array: uint8 [h, w, 3] or [B, h, w, 3], or [3, h, w] or [B, 3, h, w]."""

    address: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]  # in bytes
    device: int | None  # CUDA's index; None: the CUDA array interface does not tell
    stream: int | None  # what has to be waited for before the pixels may be read; None: nothing
    owner: Any

    def images(self, device: int, ready: Any) -> list[DeviceImage]:
        """The images of the array, on this device and readable after `ready`."""
        axes = (-2, -1, -3) if is_planar(self.shape) else (-3, -2, -1)  # of rows, pixels and channels
        height, width = (self.shape[axis] for axis in axes[:2])
        rows, pixels, channels = (self.strides[axis] for axis in axes)
        count, step = (self.shape[0], self.strides[0]) if len(self.shape) == 4 else (1, 0)
        return [
            DeviceImage(
                self.address + index * step, (rows, pixels, channels), (height, width), device, ready, self.owner
            )
            for index in range(count)
        ]


def is_foreign_array(value: object) -> bool:
    """Whether a value is an array of another library than NumPy, on the host or on a GPU."""
    names = ("__dlpack_device__", "__cuda_array_interface__", "__array__", "__array_interface__")
    return not isinstance(value, np.ndarray) and any(_has(value, name) for name in names)


def gpu_of(value: Any) -> int | None:
    """The index of the GPU that holds an array, −1 where it does not tell; None: it lies on the host.

    Raises UserError for an array on another kind of device.
    """
    if _has(value, "__dlpack_device__"):
        try:
            kind, index = (int(part) for part in value.__dlpack_device__())
        except Exception as error:  # each library has errors of its own
            raise _not_handed_over(value, error) from error
        if kind in (_CUDA, _CUDA_MANAGED):
            return index
        if kind not in _HOST:
            raise UserError(
                f"a {type(value).__name__} on a device of DLPack's type {kind}, expected the host or an NVIDIA GPU; "
                "copy it to the host"
            )
        return None
    return -1 if _has(value, "__cuda_array_interface__") else None


def dims_of(value: Any) -> int:
    """How many dimensions an array of another library has. Raises UserError."""
    if hasattr(type(value), "shape") or "shape" in getattr(value, "__dict__", ()):
        return len(value.shape)
    if gpu_of(value) is not None:
        try:
            if _has(value, "__cuda_array_interface__"):
                return len(value.__cuda_array_interface__["shape"])
            return int(_dlpack_tensor(value, _NO_STREAM)[1].ndim)
        except Exception as error:  # each library has errors of its own
            raise _not_handed_over(value, error) from error
    return host_array(value).ndim


def host_array(value: Any) -> np.ndarray:
    """An array of another library on the host as NumPy, without a copy where the library allows. Raises UserError."""
    try:
        if _has(value, "__array__") or _has(value, "__array_interface__"):
            return np.asarray(value)  # nvImageCodec's DLPack needs a driver for images on the host too
        return np.from_dlpack(value)
    except Exception as error:  # each library has errors of its own
        raise _not_handed_over(value, error) from error


def read_device_array(value: Any, stream: int) -> DeviceArray:
    """What an array on a GPU says of itself. Its type and shape are checked. Raises UserError.

    A producer that speaks DLPack orders its work before whatever the CUDA stream of handle `stream` gets from now on;
    that is the work that it has queued on its own current stream of this thread.
    """
    try:
        if _has(value, "__dlpack__"):
            return _read_dlpack(value, stream)
        return _read_interface(value, value.__cuda_array_interface__)
    except UserError:
        raise
    except Exception as error:  # each library has errors of its own
        raise _not_handed_over(value, error) from error


def is_planar(shape: tuple[int, ...]) -> bool:
    """Whether a shape is [3, height, width] or [B, 3, height, width]; with a width of 3 it counts as [height, 3, 3]."""
    return len(shape) in (3, 4) and shape[-3] == 3 != shape[-1]


def check_pixels(dtype: str, shape: tuple[int, ...], dims: tuple[int, ...] = (3,), planes: bool = False) -> None:
    """Raise UserError with advice unless an array is uint8 [height, width, 3], or has another number of `dims`.

    With `planes`, [3, height, width] is accepted too.
    """
    if dtype == "uint8" and len(shape) in dims and (shape[-1] == 3 or (planes and is_planar(shape))):
        return
    advice = ""
    if is_planar(shape):
        axes = "1, 2, 0" if len(shape) == 3 else "0, 2, 3, 1"
        advice += f"; permute it with permute({axes}), in CuPy and NumPy transpose({axes})"
    if dtype.startswith(("float", "bfloat")):
        advice += "; scale its values to 0–255 and convert it to uint8"
    raise UserError(f"{dtype} {list(shape)}, expected uint8 [height, width, 3] in RGB order{advice}")


def _has(value: object, name: str) -> bool:
    """Whether a value has an attribute, which is not read: a tensor that needs gradients raises then."""
    return hasattr(type(value), name) or name in getattr(value, "__dict__", ())


def _not_handed_over(value: Any, error: Exception) -> UserError:
    return UserError(f"a {type(value).__name__} that its library does not hand over: {error}")


def _read_interface(owner: Any, interface: Mapping[str, Any]) -> DeviceArray:
    shape = tuple(int(side) for side in interface["shape"])
    check_pixels(np.dtype(interface["typestr"]).name, shape, (3, 4), planes=True)
    if interface.get("mask") is not None:
        raise UserError("an array with a mask, expected one without")
    strides = interface.get("strides")
    # Before version 3 producers named no stream.
    stream = interface.get("stream") if interface.get("version", 0) >= 3 else _LEGACY_STREAM
    return DeviceArray(
        int(interface["data"][0]),
        shape,
        tuple(map(int, strides)) if strides is not None else _contiguous(shape),
        None,
        None if stream is None else int(stream) or _LEGACY_STREAM,
        owner,
    )


class Tensor(ctypes.Structure):
    """DLTensor of dlpack.h."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


class Versioned(ctypes.Structure):
    """DLManagedTensorVersioned of dlpack.h."""

    _fields_ = (
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        ("context", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
        ("flags", ctypes.c_uint64),
        ("tensor", Tensor),
    )


_pointer_in = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", ctypes.pythonapi)
)
_is_capsule = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.py_object, ctypes.c_char_p)(
    ("PyCapsule_IsValid", ctypes.pythonapi)
)


def _dlpack_tensor(value: Any, stream: int) -> tuple[Any, Tensor]:
    """A capsule, and the tensor that it describes and keeps alive."""
    try:
        capsule = value.__dlpack__(stream=stream, max_version=(1, 0))  # read-only arrays need version 1
    except TypeError:  # a producer from before version 1
        capsule = value.__dlpack__(stream=stream)
    if _is_capsule(capsule, b"dltensor_versioned"):
        return capsule, Versioned.from_address(_pointer_in(capsule, b"dltensor_versioned")).tensor
    return capsule, Tensor.from_address(_pointer_in(capsule, b"dltensor"))


def _read_dlpack(value: Any, stream: int) -> DeviceArray:
    capsule, tensor = _dlpack_tensor(value, stream)
    if tensor.device_type not in (_CUDA, _CUDA_MANAGED):
        raise UserError(
            f"a {type(value).__name__} whose memory is on a device of DLPack's type {tensor.device_type}, expected an "
            "NVIDIA GPU; copy it there, or to the host"
        )
    shape = tuple(tensor.shape[: tensor.ndim])
    check_pixels(f"{_KINDS.get(tensor.code, 'unknown')}{tensor.bits}", shape, (3, 4), planes=True)
    strides = tuple(tensor.strides[: tensor.ndim]) if tensor.strides else _contiguous(shape)
    # The capsule frees the array when it goes.
    address = (tensor.data or 0) + tensor.byte_offset
    return DeviceArray(address, shape, strides, tensor.device_id, None, (capsule, value))


def _contiguous(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Strides in bytes of a contiguous array of bytes."""
    strides = [1]
    for side in reversed(shape[1:]):
        strides.insert(0, strides[0] * side)
    return tuple(strides)
