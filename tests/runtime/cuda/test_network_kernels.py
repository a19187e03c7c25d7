"""The kernels of the network that a real GPU computes: their source, run on the host, gives the stand-in's results.

So do the execution contexts that launch them: in memory of the host here, on a GPU where there is one.
"""

from __future__ import annotations

import ctypes
import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("cuda.bindings.runtime", reason="the stand-in takes its enumerations from cuda-python")

from benchmarks.gpu.driver_site import MARK
from runtime.cuda import CudaError, open_cuda

from ...support.engines import feed
from ...support.standin import network
from ...support.standin.install import LIBRARIES
from ...support.standin.trt import make_tensorrt
from ...support.standin.trt_engine import engine_bytes
from ...support.standin.trt_on_gpu import SOURCE, THREADS, GpuContext, GpuDriver, compile_cubin

SHIM = f"""
#include <algorithm>
#define __global__
#define __shared__ static
#define ROWS {network.ROWS}
#define BLUE_IS_INEXACT {network.BLUE_IS_INEXACT}
static struct {{ int x, y; }} blockIdx, blockDim, threadIdx;
static long long clock64() {{ return 0; }}
static void __syncthreads() {{}}
static void atomicOr(int *at, int value) {{ *at |= value; }}
static void atomicMin(int *at, int value) {{ *at = std::min(*at, value); }}
static void atomicMax(int *at, int value) {{ *at = std::max(*at, value); }}
extern "C" void place(int block_x, int block_y, int threads, int thread) {{
    blockIdx = {{block_x, block_y}}; blockDim = {{threads, 1}}; threadIdx = {{thread, 0}};
}}
"""


class HostKernels:
    """The kernels, compiled for the host. A block of `find` has one thread: its threads share no more than sums."""

    def __init__(self, folder: Path, source: str = SOURCE) -> None:
        compiler = shutil.which("g++") or shutil.which("clang++")
        if compiler is None:
            pytest.skip("needs a C++ compiler: g++ or clang++")
        (folder / "host.cpp").write_text(SHIM + source, encoding="utf-8")
        options = ["-O1", "-ffp-contract=off", "-shared", "-fPIC"]
        subprocess.run([compiler, *options, "host.cpp", "-o", "host.so"], cwd=folder, check=True)
        self._library = ctypes.CDLL(str(folder / "host.so"))

    def launch(self, name: str, grid: tuple[int, int], stream: int, arguments: list[tuple[int, Any]]) -> None:
        """Run a kernel now."""
        threads = THREADS if name == "mark" else 1
        for column in range(grid[0]):
            for row in range(grid[1]):
                for thread in range(threads):
                    self._library.place(column, row, threads, thread)
                    getattr(self._library, name)(*(kind(value) for value, kind in arguments))


def run_on_host(kernels: Any, images: np.ndarray, sizes: np.ndarray) -> dict[str, np.ndarray]:
    """What an execution context puts into its outputs, which lie on the host, as its inputs do."""
    driver: Any = GpuDriver()
    module, shared = make_tensorrt(driver, LIBRARIES[0], GpuContext)
    shared.kernels, shared.delay_cycles = kernels, 0  # type: ignore[attr-defined]

    class Logger(module.ILogger):  # type: ignore[name-defined]
        def log(self, severity: Any, message: str) -> None:
            raise AssertionError(message)

    profile = [(1, 32, 32), (2, 64, 64), (8, 128, 128)]
    engine = module.Runtime(Logger()).deserialize_cuda_engine(engine_bytes([profile]))
    context = engine.create_execution_context(module.ExecutionContextAllocationStrategy.USER_MANAGED)
    assert context.set_optimization_profile_async(0, 7)
    assert context.set_input_shape("images", images.shape)
    assert context.set_input_shape("image_sizes", sizes.shape)
    tensors = {"images": images, "image_sizes": sizes} | {
        name: np.full(context.get_tensor_shape(name), 77, dtype) for name, dtype in network.OUTPUTS.items()
    }
    scratch = np.full(context.update_device_memory_size_for_shapes() + 256, 77, np.uint8)
    context.set_device_memory(-(-scratch.ctypes.data // 256) * 256, scratch.size - 256)
    for name, tensor in tensors.items():
        assert context.set_tensor_address(name, tensor.ctypes.data)
    assert context.execute_async_v3(7)
    driver.check_end()
    return {name: tensors[name] for name in network.OUTPUTS}


@pytest.mark.parametrize("shape", [(1, 32, 32), (5, 40, 64), (8, 33, 96)])
def test_kernels_give_the_stand_ins_results(tmp_path: Path, shape: tuple[int, int, int]) -> None:
    kernels = HostKernels(tmp_path)
    for seed in range(3):
        images, sizes = feed(*shape, seed=seed)
        for name, wanted in network.run(images, sizes).items():
            np.testing.assert_array_equal(run_on_host(kernels, images, sizes)[name], wanted, err_msg=name)


def test_a_kernel_of_another_function_is_found(tmp_path: Path) -> None:
    kernels = HostKernels(tmp_path, SOURCE.replace("pixel % width + 1", "pixel % width"))
    images, sizes = feed(4, 64, 64)
    boxes = run_on_host(kernels, images, sizes)["detection_boxes"]
    assert (boxes != network.run(images, sizes)["detection_boxes"]).any()


def test_the_kernels_compile_for_gpus() -> None:
    if importlib.util.find_spec("nvidia") is None:
        pytest.skip("needs NVRTC: pip install nvidia-cuda-nvrtc")
    assert compile_cubin("9.0")[:4] == b"\x7fELF"


@pytest.mark.gpu
@pytest.mark.parametrize("part", ["calls", "life"])
@pytest.mark.parametrize("binding", ["cuda-python", "pycuda"])
def test_every_call_and_the_backends_life_on_a_gpu(binding: Any, part: str, repository: Path) -> None:
    try:
        open_cuda(0, binding).close()
    except CudaError as error:
        pytest.skip(str(error))
    command = [sys.executable, "-m", "benchmarks.gpu.driver_child", part, "--binding", binding, "--real", "--small"]
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True, timeout=300, check=False)
    rows = [json.loads(line[len(MARK) :])["columns"] for line in done.stdout.splitlines() if line.startswith(MARK)]
    assert done.returncode == 0, done.stderr
    assert [row for row in rows if "FAILED" in row.get("result", "")] == []
    assert len(rows) >= 8
