"""How to run a model, as a record and as the command-line options that all commands share."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from numbers import Integral
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from ..bounds import Bounds, argument
from ..cuda import Binding
from ..records import RecordError, kind_of, record_from_dict
from .contract import BackendError

Index = Annotated[int, Bounds(0, 4096)]

# The backends by name. "auto" stands for the first of `choice.AUTO` that starts, on a CPU for the faster.
BACKENDS = {
    "cpu": "ONNX Runtime on the CPU",
    "openvino": "OpenVINO on the CPU",
    "cuda": "ONNX Runtime, CUDA",
    "ort-tensorrt": "ONNX Runtime, TensorRT (builds its engine when it starts, which takes minutes)",
    "ort-rtx": "ONNX Runtime, TensorRT for RTX",
    "tensorrt": "an engine (.engine) in TensorRT or TensorRT for RTX",
}


# The options that each backend reads. Any other option that is given raises an error instead of being ignored.
OPTIONS_BY_BACKEND = {
    "cpu": {"threads", "allow_saturation"},
    "openvino": {"threads", "allow_saturation", "precision_hint", "hint"},
    "cuda": {"device", "threads", "allow_fallback", "allow_saturation"},
    "ort-tensorrt": {"device", "threads", "allow_fallback", "allow_saturation", "engine_cache"},
    "ort-rtx": {"device", "threads", "allow_fallback", "allow_saturation", "engine_cache"},
    "tensorrt": {"device", "binding"},
}


@dataclass(frozen=True)
class BackendOptions:
    """Keywords of `open_backend`."""

    backend: str = "auto"  # a name of BACKENDS, or "auto"
    device: Index = 0  # index of the GPU
    threads: Index = 0  # on the CPU; 0: the library decides
    allow_fallback: bool = False  # accept another execution provider than the one asked for
    allow_saturation: bool = False  # accept int8 sums that saturate on this processor, which costs AP
    # What float32 layers compute in. bf16 is for OpenVINO on CPUs that support it, and changes the numbers.
    precision_hint: Literal["f32", "bf16"] = "f32"
    hint: Literal["latency", "throughput"] = "latency"  # OpenVINO: one batch on all threads, or several at once
    # Where ort-tensorrt and ort-rtx keep engines between runs. Engines are executable code: use a private folder.
    engine_cache: Path | None = None
    binding: Binding | None = None  # tensorrt: the binding to CUDA; None: cuda-python, or else pycuda


def options_from(given: Mapping[str, Any]) -> BackendOptions:
    """The options that keywords give. Raises BackendError that names one that is unknown, or out of its bounds."""
    values = {name: int(value) if _is_whole(value) else value for name, value in given.items()}
    cache = values.pop("engine_cache", None)
    if not isinstance(cache, str | os.PathLike | None):
        raise BackendError(f"backend options: engine_cache is {kind_of(cache)}, expected the path of a folder")
    try:
        options = record_from_dict(BackendOptions, {**vars(_DEFAULT), **values}, "backend options")
    except RecordError as error:
        raise BackendError(str(error)) from error
    return options if cache is None else replace(options, engine_cache=Path(cache))


def _is_whole(value: object) -> bool:
    """Whether a value is a whole number, which may be NumPy's."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def add_backend_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command-line options that `backend_options` reads."""
    group = parser.add_argument_group("backend")
    group.add_argument(
        "--backend",
        choices=["auto", *BACKENDS],
        default="auto",
        help="auto: a GPU, or else the faster of openvino and cpu, which the first start of a float "
        "file measures for a second, or a few calls; " + "; ".join(f"{k}: {v}" for k, v in BACKENDS.items()),
    )
    group.add_argument("--device", type=argument(Index), default=0, metavar="N", help="index of the GPU (%(default)s)")
    group.add_argument(
        "--threads", type=argument(Index), default=0, metavar="N", help="CPU threads (0: the library decides)"
    )
    group.add_argument("--allow-fallback", action="store_true", help="accept another execution provider than asked for")
    group.add_argument(
        "--allow-saturation", action="store_true", help="accept int8 sums that saturate on this CPU; costs AP"
    )
    group.add_argument(
        "--precision-hint",
        choices=["f32", "bf16"],
        default="f32",
        help="openvino: what float32 layers compute in; bf16 is faster and changes the numbers (%(default)s)",
    )
    group.add_argument(
        "--hint",
        choices=["latency", "throughput"],
        default="latency",
        help="openvino: all threads on one batch, or several batches in parallel (%(default)s)",
    )
    group.add_argument("--binding", choices=get_args(Binding), help="tensorrt: the Python binding to CUDA")
    group.add_argument(
        "--engine-cache", type=Path, metavar="DIR", help="ort-tensorrt, ort-rtx: keep engines in this private folder"
    )


def backend_options(options: argparse.Namespace) -> dict[str, Any]:
    """Keyword arguments for `open_backend` and `Detector` from a command line with `add_backend_arguments`."""
    return {field.name: getattr(options, field.name) for field in fields(BackendOptions)}


def ignored_options(options: BackendOptions, backend: str) -> list[str]:
    """Names of the options that differ from the default and that a backend doesn't read."""
    return [n for n in given_options(options) if n != "backend" and n not in OPTIONS_BY_BACKEND[backend]]


def given_options(options: BackendOptions) -> list[str]:
    """Names of the options that differ from the default."""
    names = [field.name for field in fields(BackendOptions)]
    return [name for name in names if getattr(options, name) != getattr(_DEFAULT, name)]


def as_flag(options: BackendOptions, name: str) -> str:
    """An option and its value as on the command line."""
    value, flag = getattr(options, name), f"--{name.replace('_', '-')}"
    return flag if value is True else f"{flag} {value}"


def backends_taking(name: str) -> str:
    """The names of the backends that read an option, for messages."""
    return ", ".join(backend for backend, names in OPTIONS_BY_BACKEND.items() if name in names)


_DEFAULT = BackendOptions()
