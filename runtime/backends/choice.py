"""Chooses the backend that runs a file: the one that was named, or the best one that starts."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..command_names import QUANTIZE, TO_ONNX, TO_TRT
from .contract import Backend, BackendError
from .engine_file import SUFFIXES as ENGINE_SUFFIXES
from .onnx_file import check_file
from .openvino_backend import OpenVinoBackend
from .options import BACKENDS, BackendOptions, as_flag, backends_taking, ignored_options
from .ort.backend import OrtBackend

# Best first. TensorRT's providers are left out: they build an engine for minutes, which users must ask for.
AUTO = ("cuda", "openvino", "cpu")


def open_backend(path: str | os.PathLike[str], **options: Any) -> Backend:
    """Open a deployed model (.onnx, .engine). `options` are fields of `BackendOptions`.

    Without options the best backend that starts is taken. Raises BackendError for a file that the chosen backend, or
    every backend, can't run; ManifestError, EngineError.
    """
    chosen, suffix = BackendOptions(**options), Path(path).suffix.lower()
    if suffix == ".onnx":
        return open_onnx(path, chosen)
    if suffix in ENGINE_SUFFIXES:
        return open_engine(path, chosen)
    if suffix in (".pt", ".pth", ".ckpt"):
        raise BackendError(f"{path}: a checkpoint must be exported first: {TO_ONNX} {path}")
    raise BackendError(f"{path}: expected a deployed model, a file named *.onnx or *.engine")


def open_onnx(path: str | os.PathLike[str], options: BackendOptions) -> OrtBackend | OpenVinoBackend:
    """Open an ONNX file in the backend that `options` name. Raises BackendError, ManifestError."""
    check_file(Path(path))
    return _open_best(path, options) if options.backend == "auto" else _open_named(path, options)


def _open_named(path: str | os.PathLike[str], options: BackendOptions) -> OrtBackend | OpenVinoBackend:
    if options.backend == "tensorrt":
        raise BackendError(
            f"{path}: --backend tensorrt runs engines; build one with {TO_TRT} {path}, or use ort-tensorrt for the "
            "ONNX file"
        )
    if options.backend not in BACKENDS:
        raise BackendError(f"backend {options.backend!r}: expected auto, {', '.join(BACKENDS)}")
    _refuse_ignored(options)
    return OpenVinoBackend(path, options) if options.backend == "openvino" else OrtBackend(path, options)


def open_engine(path: str | os.PathLike[str], options: BackendOptions) -> Backend:
    """Open a TensorRT engine. Raises BackendError, EngineError, CudaError."""
    if options.backend not in ("auto", "tensorrt"):
        raise BackendError(
            f"{path}: an engine runs in TensorRT only, not in --backend {options.backend}; leave the option out, or "
            "give the .onnx file that the engine was built from"
        )
    _refuse_ignored(replace(options, backend="tensorrt"))
    from .trt.backend import TrtBackend

    return TrtBackend(path, device=options.device, binding=options.binding)


def _refuse_ignored(options: BackendOptions) -> None:
    """Raise BackendError for an option that the backend would ignore."""
    for name in ignored_options(options, options.backend):
        raise BackendError(
            f"{as_flag(options, name)} is for --backend {backends_taking(name)}, not {options.backend}; leave it out, "
            f"or choose a backend that takes it{_INSTEAD.get(name, '')}"
        )


_INSTEAD = {"precision_hint": f"; for half precision elsewhere export another file ({QUANTIZE})"}


def _eligible(options: BackendOptions) -> list[str]:
    """The backends of AUTO that read every given option. Raises BackendError where there is none."""
    if options.allow_fallback:
        raise BackendError(
            "--allow-fallback: auto only takes backends that really start, so nothing falls back; name the backend "
            f"that may fall back, with --backend {backends_taking('allow_fallback')}"
        )
    dropped = {name: ignored_options(options, name) for name in AUTO}
    fitting = [name for name, unused in dropped.items() if not unused]
    if not fitting:
        given = dict.fromkeys(option for unused in dropped.values() for option in unused)
        told = "; ".join(f"{as_flag(options, option)} is for --backend {backends_taking(option)}" for option in given)
        raise BackendError(f"no backend of auto takes all options: {told}; name a backend, or leave an option out")
    return fitting


def _open_best(path: str | os.PathLike[str], options: BackendOptions) -> OrtBackend | OpenVinoBackend:
    """The first backend of AUTO that starts. Its description says why better ones didn't.

    Backends that would ignore a given option are skipped: a named GPU is required, and bf16 never becomes float32.
    """
    reasons: list[str] = []
    failures: list[BackendError] = []
    for name in _eligible(options):
        try:
            backend = _open_named(path, replace(options, backend=name))
        except BackendError as error:
            failures.append(error)
            reasons.append(f"{name}: {_reason(error, path)}")
            continue
        backend.description += f" ({'; '.join(['best that starts', *reasons])})"
        return backend
    raise failures[-1]


def _reason(error: BackendError, path: str | os.PathLike[str]) -> str:
    """The first clause of the error, without the file's name."""
    return str(error).removeprefix(f"{Path(path)}: ").split("; ")[0]
