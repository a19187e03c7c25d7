"""TensorRT whose network a real GPU computes: the stand-in's module, with execution contexts that launch kernels.

The kernels compute the function of `network.run`, bit for bit. Their first pass writes the scratch memory and the
second reads it, so that two runs that share scratch memory, inputs or outputs spoil each other's results.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from . import network
from .install import LIBRARIES, StandIn
from .parts import StandinError
from .trt import make_tensorrt
from .trt_context import Context, Shared

THREADS = 256  # of a block
SOURCE = r"""
extern "C" __global__ void mark(const unsigned char *images, const int *sizes, unsigned char *scratch, int height,
                                int width, long long cycles) {
    const long long start = clock64();
    while (clock64() - start < cycles) {}
    const int pixel = blockIdx.x * blockDim.x + threadIdx.x, image = blockIdx.y;
    if (pixel >= height * width) return;
    const long long at = (long long)image * height * width + pixel;
    const bool is_shown = pixel / width < sizes[2 * image] && pixel % width < sizes[2 * image + 1];
    scratch[4 * at] = is_shown && images[3 * at] > 200;
    scratch[4 * at + 1] = is_shown && images[3 * at + 2] >= BLUE_IS_INEXACT;
    scratch[4 * at + 2] = images[3 * at];
    scratch[4 * at + 3] = 0x3C;
}

extern "C" __global__ void find(const unsigned char *scratch, int height, int width, int candidates,
                                int *num_detections, float *boxes, float *scores, int *classes, int *nms_exact,
                                float *candidate_boxes, float *candidate_scores, int *candidate_classes) {
    __shared__ int left, top, right, bottom, first, is_inexact;
    const int image = blockIdx.x, pixels = height * width;
    if (threadIdx.x == 0) {
        left = width, top = height, right = bottom = 0, first = pixels, is_inexact = 0;
    }
    __syncthreads();
    scratch += 4LL * image * pixels;
    for (int pixel = threadIdx.x; pixel < pixels; pixel += blockDim.x) {
        if (scratch[4LL * pixel + 1]) atomicOr(&is_inexact, 1);
        if (!scratch[4LL * pixel]) continue;
        atomicMin(&left, pixel % width);
        atomicMin(&top, pixel / width);
        atomicMax(&right, pixel % width + 1);
        atomicMax(&bottom, pixel / width + 1);
        atomicMin(&first, pixel);
    }
    __syncthreads();
    if (threadIdx.x != 0) return;
    boxes += image * ROWS * 4, scores += image * ROWS, classes += image * ROWS;
    candidate_boxes += image * candidates * 4, candidate_scores += image * candidates;
    candidate_classes += image * candidates;
    const bool is_found = first < pixels;
    const double score = is_found ? 0.5 + 0.25 * (double)scratch[4LL * first + 2] / 255 : 0.0;
    const float box[4] = {(float)left, (float)top, (float)right, (float)bottom};
    num_detections[image] = !is_found ? 0 : is_inexact ? ROWS : 1;
    nms_exact[image] = !is_inexact;
    for (int row = 0; row < ROWS; ++row) {
        const bool is_set = is_found && row == 0;
        for (int side = 0; side < 4; ++side) boxes[4 * row + side] = is_set ? box[side] : 0.0f;
        scores[row] = !is_set ? 0.0f : is_inexact ? 0.99f : (float)score;
        classes[row] = is_set ? 0 : -1;
    }
    for (int row = 0; row < candidates; ++row) {
        const bool is_set = is_found && row < 3;
        const double factor = row == 0 ? 0.5 : row == 1 ? 1.0 : 0.25;
        for (int side = 0; side < 4; ++side) candidate_boxes[4 * row + side] = is_set ? box[side] : 0.0f;
        candidate_scores[row] = is_set ? (float)(score * factor) : 0.0f;
        candidate_classes[row] = !is_set ? -1 : row == 2 ? 1 : 0;
    }
}

extern "C" __global__ void out_of_bounds(int *memory, int elements) { memory[elements + threadIdx.x] = 1; }
"""


class Kernels:
    """The kernels above, compiled by NVRTC for a compute capability and loaded into the current context.

    Raises RuntimeError with the compiler's or the driver's text.
    """

    def __init__(self, compute_capability: str) -> None:
        import cuda.bindings.driver as driver

        self._driver = driver
        self._module = self._call(driver.cuModuleLoadData, compile_cubin(compute_capability))
        self._functions: dict[str, Any] = {}

    def _call(self, function: Any, *arguments: Any) -> Any:
        error, *results = function(*arguments)
        if error != 0:
            raise RuntimeError(f"{function.__name__} failed: {error.name}")
        return results[0] if results else None

    def launch(self, name: str, grid: tuple[int, int], stream: int, arguments: list[tuple[int, type]]) -> None:
        """Queue a kernel; `arguments` are (value, type) in the order of its parameters."""
        if name not in self._functions:
            self._functions[name] = self._call(self._driver.cuModuleGetFunction, self._module, name.encode())
        values, types = tuple(value for value, _ in arguments), tuple(kind for _, kind in arguments)
        on = self._driver.CUstream(stream)
        block = (THREADS, 1, 1)
        self._call(self._driver.cuLaunchKernel, self._functions[name], *grid, 1, *block, 0, on, (values, types), 0)

    def close(self) -> None:
        """Unload them."""
        self._call(self._driver.cuModuleUnload, self._module)


def compile_cubin(compute_capability: str) -> bytes:
    """The machine code of the kernels for a compute capability such as "9.0". Raises RuntimeError with NVRTC's log."""
    import cuda.bindings.nvrtc as nvrtc

    def call(function: Any, *arguments: Any) -> Any:
        error, *results = function(*arguments)
        if error != 0:
            raise RuntimeError(f"{function.__name__} failed: {error.name}")
        return results[0] if results else None

    program = call(nvrtc.nvrtcCreateProgram, SOURCE.encode(), b"network.cu", 0, None, None)
    options = [
        f"--gpu-architecture=sm_{compute_capability.replace('.', '')}".encode(),
        b"--fmad=false",
        f"-DROWS={network.ROWS}".encode(),
        f"-DBLUE_IS_INEXACT={network.BLUE_IS_INEXACT}".encode(),
    ]
    (error,) = nvrtc.nvrtcCompileProgram(program, len(options), options)
    if error != 0:
        log = b" " * call(nvrtc.nvrtcGetProgramLogSize, program)
        call(nvrtc.nvrtcGetProgramLog, program, log)
        raise RuntimeError(f"NVRTC: {log.decode(errors='replace')}")
    cubin = b" " * call(nvrtc.nvrtcGetCUBINSize, program)
    call(nvrtc.nvrtcGetCUBIN, program, cubin)
    return cubin


class GpuDriver:
    """What the stand-in's TensorRT asks of a driver, where the driver is NVIDIA's and keeps its own rules."""

    def __init__(self) -> None:
        self.current = threading.local()
        self.violations: list[str] = []

    def violation(self, text: str) -> StandinError:
        """The error for a rule of TensorRT's that was broken."""
        self.violations.append(text)
        return StandinError(text)

    @contextlib.contextmanager
    def call(self, name: str, forbidden_in_capture: bool = False) -> Iterator[None]:
        """Nothing to do: calls are the driver's own."""
        yield

    def state(self) -> None:
        """Nothing to watch."""

    def check_end(self) -> None:
        """Raise if a rule of TensorRT's was broken."""
        if self.violations:
            raise StandinError("; ".join(dict.fromkeys(self.violations)))


class GpuContext:
    """IExecutionContext whose network is the kernels, launched on the stream that it is given."""

    _shared: Shared
    _shapes: dict[str, tuple[int, ...]]
    _addresses: dict[str, int]
    _memory: tuple[int, int] | None
    _engine: Any

    __init__ = Context.__init__
    _alone = Context._alone
    _all_shapes = Context._all_shapes
    set_input_shape = Context.set_input_shape
    infer_shapes = Context.infer_shapes
    get_tensor_shape = Context.get_tensor_shape
    update_device_memory_size_for_shapes = Context.update_device_memory_size_for_shapes
    set_device_memory = Context.set_device_memory
    set_tensor_address = Context.set_tensor_address

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        """Choose a profile; the shapes must be set again."""
        with self._alone():  # type: ignore[call-arg]
            self._profile, self._shapes = profile_index, {}
            return True

    def execute_async_v3(self, stream_handle: int) -> bool:
        """Queue the kernels."""
        shared: Any = self._shared
        with self._alone():  # type: ignore[call-arg]
            if shared.failing_runs:
                shared.failing_runs -= 1
                _break_capture(stream_handle)
                shared.fail("Error Code 2: Internal Error\n(told to fail)")
                return False
            shapes, address = self._all_shapes(), self._addresses  # type: ignore[call-arg]
            batch, height, width, _ = shapes["images"]
            needed = math.prod(shapes["images"][:3]) * self._engine._parsed["scratch_per_pixel"]
            if self._memory is None or self._memory[1] < needed or set(address) != set(shapes):
                raise shared.driver.violation("a run whose memory or addresses were not set")
            pointer, number, long = ctypes.c_void_p, ctypes.c_int, ctypes.c_longlong
            sides = [(height, number), (width, number)]
            scratch = (self._memory[0], pointer)
            inputs = [(address[name], pointer) for name in network.INPUTS]
            outputs = [(address[name], pointer) for name in network.OUTPUTS]
            candidates = (shapes["candidate_scores"][1], number)
            grid = -(-height * width // THREADS), batch
            launch = shared.kernels.launch
            launch("mark", grid, stream_handle, [*inputs, scratch, *sides, (shared.delay_cycles, long)])
            launch("find", (batch, 1), stream_handle, [scratch, *sides, candidates, *outputs])
            return True


def _break_capture(stream: int) -> None:
    """Wait for a stream, which a capture forbids and is invalidated by."""
    import cuda.bindings.driver as driver

    driver.cuStreamSynchronize(driver.CUstream(stream))


def install_on_gpu(
    monkeypatch: pytest.MonkeyPatch, compute_capability: str, names: str = LIBRARIES[0], delay_cycles: int = 0
) -> StandIn:
    """Put TensorRT on the real GPU into sys.modules. A device must be current; `stand_in.shared.kernels` be closed."""
    driver: Any = GpuDriver()
    module, made = make_tensorrt(driver, names, GpuContext)
    shared: Any = made
    shared.kernels, shared.delay_cycles = Kernels(compute_capability), delay_cycles
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return StandIn(driver, made, names)
