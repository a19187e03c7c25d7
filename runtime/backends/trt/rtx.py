"""What only TensorRT for RTX has: it compiles kernels when a shape first runs, keeps them, and captures graphs itself.

The names of TensorRT's here are in `tensorrt_rtx` alone; callers branch on the flavor.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from ...files import WriteError, atomic_write
from .engine import LoadedEngine

_HASH_BYTES = 32


def make_contexts_rtx(loaded: LoadedEngine, kernels: bytes, cuda_graphs: bool) -> tuple[Callable[[], Any], Any]:
    """Makes execution contexts that get their scratch memory from us; and the cache of compiled kernels behind them.

    `kernels` is what the cache held in an earlier run, empty for none. The cache must outlive the contexts.
    """
    trt, engine = loaded.trt, loaded.engine
    runtime_config = engine.create_runtime_config()
    runtime_config.set_execution_context_allocation_strategy(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
    if cuda_graphs:
        # Its own capture, not ours: it alone knows when a shape's kernels have replaced the general ones.
        runtime_config.cuda_graph_strategy = trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
    runtime_cache = runtime_config.create_runtime_cache()
    if kernels:
        runtime_cache.deserialize(kernels)  # False: of another version, driver or GPU; the kernels are compiled again
    runtime_config.set_runtime_cache(runtime_cache)
    return lambda: engine.create_execution_context(runtime_config), runtime_cache


def kernels_rtx(runtime_cache: Any) -> bytes:
    """What the cache holds, for the next run."""
    host_memory = runtime_cache.serialize()
    return b"" if host_memory is None else bytes(host_memory)


def cache_path(engine: str | os.PathLike[str]) -> Path:
    """Where an engine's compiled kernels lie: its whole name with .cache behind."""
    return Path(f"{os.fspath(engine)}.cache")


def read_kernels(path: Path, engine_sha256: str) -> bytes:
    """The kernels in a file of write_kernels for this engine; empty where it is absent, damaged or another engine's."""
    try:
        data = path.read_bytes()
    except OSError:
        return b""
    digest, kernels = data[:_HASH_BYTES], data[_HASH_BYTES:]
    return kernels if digest == _digest(engine_sha256, kernels) else b""


def write_kernels(path: Path, engine_sha256: str, kernels: bytes) -> None:
    """Keep kernels for the next run. A folder that can't be written to costs compiling them again, no more."""
    with suppress(WriteError):
        atomic_write(path, _digest(engine_sha256, kernels) + kernels)


def _digest(engine_sha256: str, kernels: bytes) -> bytes:
    return hashlib.sha256(bytes.fromhex(engine_sha256) + kernels).digest()
