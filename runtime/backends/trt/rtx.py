"""Features of TensorRT for RTX alone: it compiles kernels when a shape first runs, and captures CUDA graphs itself.

The TensorRT names in this file exist in `tensorrt_rtx` only; callers check the engine's flavor.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from ...files import WriteError, atomic_write
from ..contract import BackendError
from .engine import LoadedEngine

_HASH_BYTES = 32


def make_contexts_rtx(loaded: LoadedEngine, kernels: bytes, cuda_graphs: bool) -> tuple[Callable[[], Any], Any]:
    """A function that makes execution contexts whose scratch memory the caller provides, and their kernel cache.

    `kernels` is the content of the cache from an earlier run, empty for none. The cache must outlive the contexts.
    Raises BackendError.
    """
    trt, engine = loaded.trt, loaded.engine
    runtime_config = engine.create_runtime_config()
    runtime_config.set_execution_context_allocation_strategy(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
    if cuda_graphs:
        # RTX captures, not the slot: only RTX knows when specialised kernels have replaced the generic ones.
        runtime_config.cuda_graph_strategy = trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
    runtime_cache = runtime_config.create_runtime_cache()
    if kernels:
        runtime_cache.deserialize(kernels)  # False for another version, driver or GPU: kernels are recompiled
    if not runtime_config.set_runtime_cache(runtime_cache):
        raise BackendError(f"TensorRT for RTX could not use a cache of compiled kernels: {loaded.errors.reason()}")
    return lambda: engine.create_execution_context(runtime_config), runtime_cache


def kernels_rtx(runtime_cache: Any) -> bytes:
    """The content of a kernel cache as bytes, for the next run."""
    host_memory = runtime_cache.serialize()
    return b"" if host_memory is None else bytes(host_memory)


def cache_path(engine: str | os.PathLike[str]) -> Path:
    """The path of an engine's compiled kernels: the engine's whole name followed by .cache."""
    return Path(f"{os.fspath(engine)}.cache")


def read_kernels(path: Path, engine_sha256: str) -> bytes:
    """Kernels from a file of `write_kernels`; empty where the file is missing, damaged or for another engine."""
    try:
        data = path.read_bytes()
    except OSError:
        return b""
    digest, kernels = data[:_HASH_BYTES], data[_HASH_BYTES:]
    return kernels if digest == _digest(engine_sha256, kernels) else b""


def write_kernels(path: Path, engine_sha256: str, kernels: bytes) -> None:
    """Save kernels for the next run. In a folder that isn't writable nothing is saved: the next run recompiles them."""
    with suppress(WriteError):
        atomic_write(path, _digest(engine_sha256, kernels) + kernels)


def _digest(engine_sha256: str, kernels: bytes) -> bytes:
    return hashlib.sha256(bytes.fromhex(engine_sha256) + kernels).digest()
