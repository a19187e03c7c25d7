"""The device that a run trains on, and the precision of the network's matrix products."""

from __future__ import annotations

import contextlib

import torch

from runtime.errors import UserError
from runtime.names import unknown_name

from ..config import Config, DeviceName, TrainingPrecision


class DeviceError(UserError):
    """A device that torch doesn't find, or a precision that the device doesn't train in."""


def pick_device(name: DeviceName) -> torch.device:
    """The torch device of a name; "auto" is the GPU where there is one. Raises DeviceError where there is none."""
    match name:
        case "auto":
            return torch.device("cuda" if torch.cuda.is_available() else "cpu")
        case "cuda" if not torch.cuda.is_available():
            raise DeviceError("--run.device cuda, but torch finds no CUDA device: use --run.device cpu")
        case "cuda" | "cpu":
            return torch.device(name)
        case _:
            unknown_name(name, "run.device", DeviceName)


def pick_precision(config: Config) -> torch.dtype:
    """The dtype of autocast while training; "auto" is bf16 where the device has it in hardware. Raises DeviceError."""
    device = pick_device(config.run.device)
    match config.run.precision:
        case "auto":
            return torch.bfloat16 if _has_bf16(device) else torch.float32
        case "fp32":
            return torch.float32
        case "bf16":
            return torch.bfloat16
        case "fp16" if device.type == "cpu":
            raise DeviceError("--run.precision fp16 trains on a GPU only: use bf16 or fp32 on a CPU")
        case "fp16":
            return torch.float16
        case _:
            unknown_name(config.run.precision, "run.precision", TrainingPrecision)


def _has_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    with contextlib.suppress(AttributeError):  # older versions of torch can't tell, and float32 is always right
        found = torch.cpu.get_capabilities()
        # torch may be limited to less than the processor has, by ATEN_CPU_CAPABILITY.
        wide = "AVX512" in torch.backends.cpu.get_cpu_capability()
        return wide and bool(found.get("avx512_bf16") or found.get("amx_bf16"))
    return False
