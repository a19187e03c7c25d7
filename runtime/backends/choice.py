"""Which backend runs a file: the one that was named, or the best that starts."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from . import Backend, BackendError
from .artifact import check_file
from .options import BACKENDS, BackendOptions
from .ort import OrtBackend
from .ov import OpenVinoBackend

# Best first. TensorRT's providers are not among them: they build an engine for minutes, which is to be asked for.
AUTO = ("cuda", "openvino", "cpu")
_ON_A_CPU = ("cpu", "openvino")


def open_onnx(path: str | os.PathLike[str], options: BackendOptions) -> OrtBackend | OpenVinoBackend:
    """Open an ONNX file. Raises BackendError, ManifestError."""
    check_file(Path(path))
    return _open_best(path, options) if options.backend == "auto" else _open_named(path, options)


def _open_named(path: str | os.PathLike[str], options: BackendOptions) -> OrtBackend | OpenVinoBackend:
    if options.backend == "tensorrt":
        raise BackendError(
            f"{path}: --backend tensorrt runs engines; build one with python export/to_trt.py {path}, or use "
            "ort-tensorrt for the ONNX file"
        )
    if options.backend not in BACKENDS:
        raise BackendError(f"backend {options.backend!r}: expected auto, {', '.join(BACKENDS)}")
    if options.backend in _ON_A_CPU and options.device != 0:
        raise BackendError(f"--device {options.device}: {options.backend} runs on the CPU; give --backend cuda with it")
    if options.backend != "openvino" and options.precision_hint != "f32":
        raise BackendError(
            f"--precision-hint {options.precision_hint} is for --backend openvino, not {options.backend}; for half "
            "precision elsewhere export another file (python -m export.quantize)"
        )
    return OpenVinoBackend(path, options) if options.backend == "openvino" else OrtBackend(path, options)


def open_engine(path: str | os.PathLike[str], options: BackendOptions) -> Backend:
    """Open a TensorRT engine. Raises BackendError, EngineError."""
    if options.backend not in ("auto", "tensorrt"):
        raise BackendError(
            f"{path}: an engine runs in TensorRT only, --backend {options.backend} does not take it; leave the option "
            "out, or give the .onnx file that it was built from"
        )
    from .trt import TrtBackend

    return TrtBackend(path, device=options.device, binding=options.binding)


def _open_best(path: str | os.PathLike[str], options: BackendOptions) -> OrtBackend | OpenVinoBackend:
    """The first of AUTO that starts; its description says why not those before it.

    A fallback inside ONNX Runtime is no start, whatever `options` allow. A GPU is required where `options` name one.
    """
    reasons: list[str] = []
    failures: list[BackendError] = []
    for name in AUTO:
        if options.device != 0 and name in _ON_A_CPU:
            continue
        if options.precision_hint != "f32" and name != "openvino":
            continue
        try:
            backend = _open_named(path, replace(options, backend=name, allow_fallback=False))
        except BackendError as error:
            failures.append(error)
            reasons.append(f"{name}: {_reason(error, path)}")
            continue
        backend.description += f" ({'; '.join(['best that starts', *reasons])})"
        return backend
    raise failures[-1]


def _reason(error: BackendError, path: str | os.PathLike[str]) -> str:
    """The error's first clause, without the file's name."""
    return str(error).removeprefix(f"{Path(path)}: ").split("; ")[0]
