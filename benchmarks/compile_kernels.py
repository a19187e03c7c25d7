"""Compiles runtime/cuda/*.cu to the .ptx files beside them, which the driver compiles for the GPU at hand.

NVRTC does it, on a machine without a GPU too. Version 11.8 writes PTX that every driver since 520 reads:

    pip install nvidia-cuda-nvrtc-cu11==11.8.89
    python -m benchmarks.compile_kernels
"""

from __future__ import annotations

import argparse
import ctypes
import hashlib
import importlib.util
from pathlib import Path
from typing import Any

KERNELS = Path(__file__).parents[1] / "runtime" / "cuda"
# The oldest GPUs that the toolkit supports. Without --fmad=false sums would round otherwise than on a CPU.
OPTIONS = (b"--gpu-architecture=compute_75", b"--fmad=false")
_MARK = "// of source sha256 "


class NoCompiler(Exception):
    """NVRTC of the version is not installed."""


def load_nvrtc() -> Any:
    """NVRTC 11.8 of its wheel. Raises NoCompiler where that isn't installed."""
    spec = importlib.util.find_spec("nvidia")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        for path in Path(folder).glob("cuda_nvrtc/lib/libnvrtc.so.11*"):
            return ctypes.CDLL(str(path))
    raise NoCompiler("pip install nvidia-cuda-nvrtc-cu11==11.8.89")


def compile_ptx(nvrtc: Any, source: bytes) -> bytes:
    """The PTX of a CUDA source, with a line that names the source's hash. Raises ValueError with NVRTC's log."""
    program = ctypes.c_void_p()
    _check(nvrtc.nvrtcCreateProgram(ctypes.byref(program), source, b"kernel.cu", 0, None, None))
    failed = nvrtc.nvrtcCompileProgram(program, len(OPTIONS), (ctypes.c_char_p * len(OPTIONS))(*OPTIONS))
    if failed:
        raise ValueError(_text(nvrtc.nvrtcGetProgramLogSize, nvrtc.nvrtcGetProgramLog, program).decode())
    return mark(source) + _text(nvrtc.nvrtcGetPTXSize, nvrtc.nvrtcGetPTX, program).rstrip(b"\0")


def mark(source: bytes) -> bytes:
    """The first line of the PTX of a source."""
    return f"{_MARK}{hashlib.sha256(source).hexdigest()}\n".encode()


def _text(size_of: Any, get: Any, program: Any) -> bytes:
    size = ctypes.c_size_t()
    _check(size_of(program, ctypes.byref(size)))
    buffer = ctypes.create_string_buffer(size.value)
    _check(get(program, buffer))
    return buffer.raw


def _check(code: int) -> None:
    if code:
        raise ValueError(f"NVRTC failed with code {code}")


def main() -> None:
    """Compile every kernel."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    nvrtc = load_nvrtc()
    for path in sorted(KERNELS.glob("*.cu")):
        path.with_suffix(".ptx").write_bytes(compile_ptx(nvrtc, path.read_bytes()))
        print(path.with_suffix(".ptx").name)


if __name__ == "__main__":
    main()
