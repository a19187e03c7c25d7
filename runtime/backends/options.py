"""How a model is to be run, as data and as command-line options that every command shares."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

from ..cuda import Binding

# What may run a model, and what each is; "auto" stands for the first of `choice.AUTO` that starts.
BACKENDS = {
    "cpu": "ONNX Runtime on the CPU",
    "openvino": "OpenVINO on the CPU",
    "cuda": "ONNX Runtime, CUDA",
    "ort-tensorrt": "ONNX Runtime, TensorRT (builds its engine when it starts, which takes minutes)",
    "ort-rtx": "ONNX Runtime, TensorRT for RTX",
    "tensorrt": "an engine (.engine) in TensorRT or TensorRT for RTX",
}


@dataclass(frozen=True)
class BackendOptions:
    """Keywords of `open_backend`."""

    backend: str = "auto"  # a name of BACKENDS, or "auto"
    device: int = 0  # index of the GPU
    threads: int = 0  # of a CPU backend; 0: the library's own choice
    allow_fallback: bool = False  # run, rather than fail, where ONNX Runtime took another provider than asked for
    allow_saturation: bool = False  # of a CPU backend: run int8 whose sums saturate on this processor
    # What float32 layers compute in; bf16 is OpenVINO's, on CPUs that have it, and changes the numbers.
    precision_hint: Literal["f32", "bf16"] = "f32"
    hint: Literal["latency", "throughput"] = "latency"  # OpenVINO: all threads on one batch, or several batches at once
    # Where ort-tensorrt and ort-rtx keep engines between runs; an engine is executable code, so: a folder of one's own.
    engine_cache: Path | None = None
    binding: Binding | None = None  # tensorrt: what speaks to the driver; None: cuda-python, else pycuda


def add_backend_arguments(parser: argparse.ArgumentParser) -> None:
    """Command-line options that `backend_options` reads."""
    group = parser.add_argument_group("what runs the model")
    group.add_argument(
        "--backend",
        choices=["auto", *BACKENDS],
        default="auto",
        help="auto: the best that is installed and starts; " + "; ".join(f"{k}: {v}" for k, v in BACKENDS.items()),
    )
    group.add_argument("--device", type=_index, default=0, metavar="N", help="index of the GPU (%(default)s)")
    group.add_argument("--threads", type=_index, default=0, metavar="N", help="of a CPU backend (0: its own choice)")
    group.add_argument("--allow-fallback", action="store_true", help="run where ONNX Runtime took another provider")
    group.add_argument(
        "--allow-saturation", action="store_true", help="run int8 on a CPU whose 8-bit sums saturate on it; costs AP"
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
        help="openvino: all threads on one batch, or several batches at once (%(default)s)",
    )
    group.add_argument("--binding", choices=get_args(Binding), help="tensorrt: what speaks to the GPU's driver")
    group.add_argument(
        "--engine-cache", type=Path, metavar="DIR", help="ort-tensorrt, ort-rtx: keep engines here, your own folder"
    )


def backend_options(options: argparse.Namespace) -> dict[str, Any]:
    """Keywords for `open_backend` (and `Detector`) from a command line that has `add_backend_arguments`."""
    return {field.name: getattr(options, field.name) for field in fields(BackendOptions)}


def _index(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text}: expected 0 or more")
    return value
