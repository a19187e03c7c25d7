"""Chooses the backend that runs a file: the one that was named, or the best one that starts."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..command_names import CHECKPOINT_SUFFIXES, QUANTIZE, TO_ONNX, TO_TRT
from .contract import Backend, BackendError
from .engine_file import SUFFIXES as ENGINE_SUFFIXES
from .fastest import compare_speed, describe_machine, recall, remember
from .onnx_file import check_file
from .openvino_backend import OpenVinoBackend
from .options import BACKENDS, BackendOptions, as_flag, backends_taking, given_options, ignored_options, options_from
from .ort.backend import OrtBackend
from .triton.address import TritonAddress, is_address
from .triton.backend import TritonBackend

# Best first. TensorRT's providers are left out: they build an engine for minutes, which users must ask for.
AUTO = ("cuda", "openvino", "cpu")
RIVALS = ("openvino", "cpu")  # of these the faster is taken; the first where they are as fast


def open_backend(path: str | os.PathLike[str], **options: Any) -> Backend:
    """Open a deployed model (.onnx, .engine), or one that a server has (triton://host:port/model).

    `options` are fields of `BackendOptions`; a server decides them itself, and none may be given.

    Without options the best backend that starts is taken. On a CPU that is the faster of OpenVINO and ONNX Runtime:
    the first start of a file measures both for a second, or for a few calls of a slow file; later ones remember
    (`fastest.py`). Their numbers differ in the sixth digit, so name the backend where all machines must find exactly
    the same. An int8 file isn't measured, because rounding makes its AP depend on the library: there it is OpenVINO
    wherever that starts. An option that one of the two doesn't read decides for the other, unmeasured.

    Raises BackendError for a file that the chosen backend, or every backend, can't run; ManifestError, EngineError.
    """
    chosen, suffix = options_from(options), Path(path).suffix.lower()
    if is_address(path):
        return open_served(os.fspath(path), chosen)
    if suffix == ".onnx":
        return open_onnx(path, chosen)
    if suffix in ENGINE_SUFFIXES:
        return open_engine(path, chosen)
    if suffix in CHECKPOINT_SUFFIXES:
        raise BackendError(f"{path}: a checkpoint must be exported first: {TO_ONNX} {path}")
    raise BackendError(f"{path}: expected a deployed model, a file named *.onnx or *.engine")


def backend_of(source: Backend | str | os.PathLike[str], **options: Any) -> Backend:
    """The backend of a path or an address, as `open_backend` opens it; one that is open already is taken as it is.

    Raises BackendError, also for a value that is neither, and for options where the backend is open already.
    """
    if isinstance(source, str | os.PathLike):
        return open_backend(source, **options)
    if isinstance(source, type) or not (hasattr(source, "manifest") and callable(getattr(source, "infer", None))):
        raise BackendError(
            f"{type(source).__name__} is no model; expected the path of a file named *.onnx or *.engine, or an open "
            "backend"
        )
    if options:
        raise BackendError(f"{', '.join(options)}: the backend is open already; give these options when opening it")
    return source


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


def open_served(url: str, options: BackendOptions) -> TritonBackend:
    """Open a model in a Triton Inference Server. Raises BackendError, also for an option: the server has its own."""
    if given := [as_flag(options, name) for name in given_options(options)]:
        raise BackendError(f"{url}: {', '.join(given)} is for files; the server decides how it runs the model")
    return TritonBackend(TritonAddress.parse(url))


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
    """The first backend of AUTO that starts, of RIVALS the faster. Its description says why, and why others didn't.

    Backends that would ignore a given option are skipped: a named GPU is required, and bf16 never becomes float32.
    """
    attempts = _Attempts(path, options)
    names = _eligible(options)
    for name in names:
        if name not in RIVALS and (backend := attempts.open(name)):
            return attempts.described(backend)
    rivals = [name for name in names if name in RIVALS]
    if len(rivals) == len(RIVALS):
        return _open_faster(attempts, Path(path), options.threads)
    for name in rivals:
        if backend := attempts.open(name):
            return attempts.described(backend)
    raise attempts.failures[-1]


def _open_faster(attempts: _Attempts, path: Path, threads: int) -> OrtBackend | OpenVinoBackend:
    """The faster of RIVALS as remembered or measured; the other where one fails. Of an int8 file the first."""
    machine = describe_machine(path, threads)
    known = recall(machine, RIVALS) if machine is not None else None
    if known is not None and (backend := attempts.open(known.chosen)):
        return attempts.described(backend, str(known))
    tried = () if known is None else (known.chosen,)
    opened: dict[str, OrtBackend | OpenVinoBackend] = {}
    chosen = None  # all others are closed, whatever happens
    try:
        for name in RIVALS:
            if name not in tried and (backend := attempts.open(name)):
                opened[name] = backend
                if backend.manifest.precision == "int8":
                    break  # the two round differently, so that a choice by speed would decide the AP
        verdict, failed = compare_speed(opened, machine) if len(opened) == len(RIVALS) else (None, {})
        for name, error in failed.items():
            attempts.failed(name, error)
        if len(failed) == len(opened):
            raise attempts.failures[-1]
        if verdict is not None:
            remember(verdict)
        chosen = verdict.chosen if verdict is not None else next(name for name in opened if name not in failed)
    finally:
        for name, other in opened.items():
            if name != chosen:
                other.close()
    return attempts.described(opened[chosen], *([str(verdict)] if verdict is not None else []))


class _Attempts:
    """Opens the backends of one file, and keeps the reasons of those that fail."""

    def __init__(self, path: str | os.PathLike[str], options: BackendOptions) -> None:
        self._path, self._options = path, options
        self._reasons: list[str] = []
        self.failures: list[BackendError] = []

    def open(self, name: str) -> OrtBackend | OpenVinoBackend | None:
        """The backend of that name; None where it doesn't start."""
        try:
            return _open_named(self._path, replace(self._options, backend=name))
        except BackendError as error:
            self.failed(name, error)
            return None

    def failed(self, name: str, error: BackendError) -> None:
        """Note why a backend isn't taken."""
        self.failures.append(error)
        self._reasons.append(f"{name}: {_reason(error, self._path)}")

    def described(self, backend: OrtBackend | OpenVinoBackend, *notes: str) -> OrtBackend | OpenVinoBackend:
        """The backend, whose description now says why it was taken."""
        backend.description += f" ({'; '.join(['best that starts', *self._reasons, *notes])})"
        return backend


def _reason(error: BackendError, path: str | os.PathLike[str]) -> str:
    """The first clause of the error, without the file's name."""
    return str(error).removeprefix(f"{Path(path)}: ").split("; ")[0]
