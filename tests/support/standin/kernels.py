"""The kernel that lays an image on a canvas, in NumPy, and the driver API's functions that load and run it.

The names of the parameters come from the CUDA source and their bits from the PTX, so that arguments in another order or
of other types give other pixels or an error.
"""

from __future__ import annotations

import ctypes
import re
import types
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import cuda.bindings.driver as real
import numpy as np

from runtime.cuda import intake

from .driver import Driver
from .parts import Access, Allocation, Module, Operation, Stream

KERNEL = "lay_on_canvas"
KERNEL_SECONDS = 0.0001
_INTEGERS = {32: ctypes.c_int32, 64: ctypes.c_int64}


def make_driver_api(driver: Driver) -> types.ModuleType:
    """`cuda.bindings.driver` as far as kernels go."""
    module = types.ModuleType("cuda.bindings.driver")
    ok = real.CUresult.CUDA_SUCCESS

    def cuModuleLoadData(image: bytes) -> tuple:
        with driver.call("cuModuleLoadData", forbidden_in_capture=True):
            return ok, load(driver, image)

    def cuModuleGetFunction(of: Module, name: bytes) -> tuple:
        with driver.call("cuModuleGetFunction"):
            assert name.decode() == KERNEL
            return ok, of

    def cuModuleUnload(of: Module) -> tuple:
        with driver.call("cuModuleUnload"):
            driver.destroy(of)
        return (ok,)

    def cuLaunchKernel(function: Module, *rest: Any) -> tuple:
        *sides, shared_bytes, stream, parameters, extra = rest
        assert (shared_bytes, extra) == (0, 0)
        with driver.call("cuLaunchKernel"):
            if isinstance(parameters, tuple):
                values, bits = parameters[0], [8 * ctypes.sizeof(kind) for kind in parameters[1]]
            else:
                values, bits = _pointed_at(driver, function, memoryview(parameters))
            run(driver, function, sides, values, bits, driver.stream(int(stream)))
        return (ok,)

    for function in (cuModuleLoadData, cuModuleGetFunction, cuModuleUnload, cuLaunchKernel):
        if not hasattr(real, function.__name__):
            raise AttributeError(f"cuda-python has no {function.__name__}")
        setattr(module, function.__name__, function)
    module.CUstream = real.CUstream  # type: ignore[attr-defined]
    return module


def _pointed_at(driver: Driver, module: Module, addresses: memoryview) -> tuple[list[int], list[int]]:
    """The values and bits of arguments that are given as addresses.

    The real driver knows no argument's size and reads what each parameter takes. Here the values must lie one behind
    the other, so that each size is known but the last, which is taken to be right.
    """
    if addresses.itemsize != 8 or len(addresses) != len(module.bits):
        raise driver.violation(f"{addresses.nbytes // 8} addresses of arguments, expected {len(module.bits)}")
    first = list(addresses)
    bits = [8 * (after - before) for before, after in pairwise(first)] + list(module.bits.values())[-1:]
    if bits != list(module.bits.values()):
        return [0] * len(bits), bits  # refused by its bits
    return [_INTEGERS[size].from_address(address).value for size, address in zip(bits, first, strict=True)], bits


def load(driver: Driver, ptx: bytes) -> Module:
    """A module of PTX, which must end with a NUL."""
    text = ptx.decode()
    if not text.endswith("\0"):
        raise driver.violation("PTX that does not end with a NUL")
    source = Path(intake.__file__).with_name("canvas.cu").read_text(encoding="utf-8")
    signature = re.search(rf"__global__ void {KERNEL}\((.*?)\)", source, re.DOTALL)
    assert signature is not None
    names = [parameter.split()[-1].lstrip("*") for parameter in signature[1].split(",")]
    bits = [int(found) for found in re.findall(rf"\.param \.[us](\d+) {KERNEL}_param_", text)]
    module = Module(driver.next_number(), driver.device(), dict(zip(names, bits, strict=True)))
    driver.handles[module.number] = module
    return module


def run(
    driver: Driver, module: Module, sides: Sequence[int], values: Sequence[int], bits: Sequence[int], stream: Stream
) -> None:
    """Queue a run of the kernel; `sides` are those of the grid and of its blocks."""
    if driver.handles.get(module.number) is not module or module.device != driver.device():
        raise driver.violation("a kernel that isn't loaded on this device")
    if list(bits) != list(module.bits.values()):
        raise driver.violation(f"arguments of {list(bits)} bits, expected {list(module.bits.values())}")
    given = dict(zip(module.bits, values, strict=True))
    height, width = given["canvas_height"], given["canvas_width"]
    columns, rows, depth, *block = sides
    if depth != 1 or block[2] != 1 or block[0] * block[1] > 1024:
        raise driver.violation(f"a grid of {sides}")
    covered = rows * block[1] >= height and columns * block[0] >= width
    strides = tuple(given[f"{name}_bytes"] for name in ("row", "pixel", "channel"))
    shape = (given["height"] * given["by"], given["width"] * given["by"], 3)
    ends = [(side - 1) * stride for side, stride in zip(shape, strides, strict=True)]
    before, size = -sum(min(end, 0) for end in ends), sum(map(abs, ends)) + 1
    source, first = driver.find(given["pixels"] - before, size, "device", "image of a kernel")
    target, at = driver.find(given["canvas"], height * width * 3, "device", "canvas of a kernel")

    def work() -> None:
        pixels = np.lib.stride_tricks.as_strided(source.data[first + before :], shape, strides)
        canvas = target.data[at : at + height * width * 3].reshape(height, width, 3)
        if covered:
            canvas[:] = lay_on_canvas(np.array(pixels), given)

    accesses = [Access(source, first, first + size, False), _write(target, at, height * width * 3)]
    operation = Operation("a kernel", stream, accesses, work, seconds=KERNEL_SECONDS)
    if stream.capture is None:
        module.last = operation
    driver.queue(stream, operation)


def _write(allocation: Allocation, start: int, size: int) -> Access:
    return Access(allocation, start, start + size, True)


def lay_on_canvas(image: np.ndarray, given: dict[str, int]) -> np.ndarray:
    """The canvas of an image, by the kernel's parameters."""
    size_hw = given["resized_height"], given["resized_width"]
    image = _averaged(image, given["by"])
    if given["halved"]:
        image = _averaged(image, 2)
    elif image.shape[:2] != size_hw:
        image = _linear(image, size_hw)
    canvas = np.empty((given["canvas_height"], given["canvas_width"], 3), np.uint8)
    canvas[:] = [given["pad"] >> shift & 255 for shift in (0, 8, 16)]
    canvas[: size_hw[0], : size_hw[1]] = image
    return canvas


def _averaged(image: np.ndarray, by: int) -> np.ndarray:
    height, width = image.shape[0] // by, image.shape[1] // by
    sums = image.reshape(height, by, width, by, 3).astype(np.int64).sum((1, 3))
    return ((sums + 2 >> 2) if by == 2 else np.rint(sums / by**2)).astype(np.uint8)


def _linear(image: np.ndarray, size_hw: tuple[int, int]) -> np.ndarray:
    (top, below), (left, right) = (_between(new, old) for new, old in zip(size_hw, image.shape[:2], strict=True))
    height, width = image.shape[:2]
    right = np.where((left < 0) | (left >= width - 1), np.float32(0), right)
    left = np.clip(left, 0, width - 1)
    pixels = image.astype(np.int64)
    columns = pixels[:, left] * _weight(1 - right)[:, None] + (
        pixels[:, np.minimum(left + 1, width - 1)] * _weight(right)[:, None]
    )
    parts = [
        columns[np.clip(rows, 0, height - 1)] // 16 * _weight(share)[:, None, None] // 65536
        for rows, share in ((top, 1 - below), (top + 1, below))
    ]
    return ((parts[0] + parts[1] + 2) // 4).astype(np.uint8)


def _between(new: int, old: int) -> tuple[np.ndarray, np.ndarray]:
    """The first of the two pixels that each place lies between, and the second one's share."""
    at = ((np.arange(new) + 0.5) * (1.0 / (new / old)) - 0.5).astype(np.float32)
    return np.floor(at).astype(np.int64), at - np.floor(at)


def _weight(share: np.ndarray) -> np.ndarray:
    return np.rint(share.astype(np.float32) * np.float32(2048)).astype(np.int64)
