"""Opens an engine: imports its library, checks that it fits this machine, deserializes it, checks the graph's contract.

Every TensorRT name in this file exists in TensorRT 10.12 and later, 11, and TensorRT for RTX.
"""

from __future__ import annotations

import dataclasses
import os
import threading
from collections import deque
from collections.abc import Callable
from itertools import takewhile
from typing import Any

from ...cuda import Device
from ...manifest import Manifest
from ...names import unknown_name
from ..contract import BackendError
from ..engine_file import EngineManifest, Flavor, Profile, library_name, this_platform
from ..onnx_file import INPUTS, OUTPUTS, difference_of_shapes

_DTYPES = {"UINT8": "uint8", "INT32": "int32", "FLOAT": "float32", "HALF": "float16", "INT64": "int64"}


class ErrorLog:
    """The last error messages that TensorRT logged, each with the thread that it was logged in.

    TensorRT logs the reason of a failed call in the thread that called. Slots share the log, and a thread is told the
    reasons of its own calls.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()  # TensorRT logs from several threads at once
        self._errors: deque[tuple[int, str]] = deque(maxlen=64)

    def add(self, message: str) -> None:
        """Note a message that the calling thread logs."""
        with self._lock:
            self._errors.append((threading.get_ident(), message))

    def reason(self) -> str:
        """The errors that the calling thread logged since it last called this method, on one line.

        Where there are none, those that other threads logged, marked as such: TensorRT may work in threads of its own.
        """
        me = threading.get_ident()
        with self._lock:
            errors = list(self._errors)
            self._errors.clear()
            self._errors.extend(entry for entry in errors if entry[0] != me)
        mine, others = (
            " ".join("; ".join([text for thread, text in errors if (thread == me) is own][-5:]).split())[:500]
            for own in (True, False)
        )
        return mine or (f"another thread logged: {others}" if others else "it gives no reason")


@dataclasses.dataclass(frozen=True)
class LoadedEngine:
    """A deserialized engine, with the logger and runtime that TensorRT requires to outlive it."""

    trt: Any  # the library
    logger: Any
    trt_runtime: Any
    engine: Any
    errors: ErrorLog


def import_tensorrt(flavor: Flavor) -> Any:
    """Import the library that runs engines of this flavor. Raises BackendError where it isn't installed."""
    try:
        match flavor:
            case "rtx":
                import tensorrt_rtx as trt
            case "tensorrt":
                import tensorrt as trt
            case _:
                unknown_name(flavor, "flavor", Flavor)
    except ImportError as error:
        extra, package = ("rtx", "tensorrt-rtx") if flavor == "rtx" else ("gpu", "tensorrt")
        raise BackendError(
            f"{package} cannot be imported ({error}); install it: pip install 'atss-toolkit[{extra}]' (without "
            f"training: pip install {package} cuda-python)"
        ) from error
    return trt


def check_fits(path: str | os.PathLike[str], described: EngineManifest, version: str, device: Device) -> None:
    """Raise BackendError unless the engine was built for this library version, system and GPU.

    TensorRT itself refuses some of these engines, but only while it deserializes them, and with obscure messages.
    """
    library = library_name(described.flavor)
    if not _runs_version(described, version):
        problem = f"built with {library} {described.library_version}, but {version} is installed"
    elif described.platform != this_platform():
        problem = f"built for {described.platform}, but this is {this_platform()}"
    elif device.compute_capability not in described.compute_capabilities:
        built_for = ", ".join(described.compute_capabilities)
        problem = f"built for compute capability {built_for}, but {device.name} has {device.compute_capability}"
    else:
        return
    raise BackendError(f"{path}: {problem}; build it again on this machine: {described.rebuild}")


def _runs_version(described: EngineManifest, version: str) -> bool:
    """Whether a library version runs the engine: the same, or if compatible a later one up to the next major."""
    if not described.version_compatible or not version[:1].isdigit():
        return described.library_version == version
    built, installed = (_numbers(text) for text in (described.library_version, version))
    return built <= installed and installed[0] <= built[0] + 1


def _numbers(version: str) -> list[int]:
    """The leading numbers of a version: "11.4.0.106" → [11, 4, 0, 106]."""
    return [int(part) for part in takewhile(str.isdigit, version.split("."))]


def load(trt: Any, path: str | os.PathLike[str], data: bytes, described: EngineManifest) -> LoadedEngine:
    """Deserialize an engine whose hash was verified, and compare it with its description. Raises BackendError."""
    logger, errors = _make_logger(trt)
    try:
        trt_runtime = trt.Runtime(logger)
    except TypeError as error:  # the binding raises this where TensorRT returns null
        raise BackendError(f"{path}: TensorRT {trt.__version__} does not start: {errors.reason()}") from error
    if described.version_compatible:  # such an engine contains library code; its hash was verified
        trt_runtime.engine_host_code_allowed = True
    engine = trt_runtime.deserialize_cuda_engine(data)
    if engine is None:
        raise BackendError(
            f"{path}: TensorRT cannot deserialize it ({errors.reason()}); if the device's memory is full, free it, "
            f"else build it again: {described.rebuild}"
        )
    problem = _difference_of_tensors(trt, engine, described.manifest)
    problem = problem or _difference_of_profiles(engine, described.profiles)
    if problem:
        raise BackendError(f"{path}: {problem}; build it again: {described.rebuild}")
    return LoadedEngine(trt, logger, trt_runtime, engine, errors)


def _make_logger(trt: Any) -> tuple[Any, ErrorLog]:
    errors = ErrorLog()

    class Logger(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                errors.add(message)

    return Logger(), errors


def _difference_of_tensors(trt: Any, engine: Any, manifest: Manifest) -> str | None:
    """The first input or output that breaks the graph's contract or the manifest, as a clause; None where all fit."""
    modes = {trt.TensorIOMode.INPUT: "input", trt.TensorIOMode.OUTPUT: "output"}
    found = {}
    for index in range(engine.num_io_tensors):
        name = engine.get_tensor_name(index)
        if engine.get_tensor_location(name) != trt.TensorLocation.DEVICE:
            return f"tensor {name!r} must lie in host memory, expected device memory"
        kind = engine.get_tensor_dtype(name).name
        dtype = _DTYPES.get(kind, kind)
        shape = tuple(engine.get_tensor_shape(name))
        found[name] = (modes[engine.get_tensor_mode(name)], dtype, len(shape), shape[1:])
    expected = {name: ("input", *rest) for name, rest in INPUTS.items()}
    expected |= {name: ("output", *rest) for name, rest in OUTPUTS.items()}
    for name, (kind, dtype, rank) in expected.items():
        if name not in found or found[name][:3] != (kind, dtype, rank):
            given = "missing" if name not in found else "{} {} of rank {}".format(*found[name][:3])
            return f"{kind} {name!r} is {given}, expected {dtype} of rank {rank}"
    extra = sorted(found.keys() - expected.keys())
    if extra:
        return f"it has tensors that the contract doesn't name: {', '.join(extra)}"
    # The profiles say which batches and canvases an engine takes; they are a part of the manifest's.
    shapes = {name: [None, *(size if size > 0 else None for size in found[name][3])] for name in expected}
    return difference_of_shapes({**shapes, "images": [None, None, None, shapes["images"][3]]}, manifest)


def _difference_of_profiles(engine: Any, profiles: tuple[Profile, ...]) -> str | None:
    found = [
        [tuple(shape)[:3] for shape in engine.get_tensor_profile_shape("images", index)]
        for index in range(engine.num_optimization_profiles)
    ]
    expected = [[profile.least, profile.best, profile.most] for profile in profiles]
    return None if found == expected else f"its profiles are {found}, its description says {expected}"


def make_contexts_tensorrt(loaded: LoadedEngine) -> Callable[[], Any]:
    """A function that makes execution contexts whose scratch memory the caller provides."""
    strategy = loaded.trt.ExecutionContextAllocationStrategy.USER_MANAGED
    return lambda: loaded.engine.create_execution_context(strategy)
