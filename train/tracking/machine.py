"""What a tracker is told of the machine that trains."""

from __future__ import annotations

import platform

import torch

from runtime.machine.conditions import version_of
from runtime.machine.processor import processors, read_processor
from runtime.manifest import toolkit_version

from .tracker import Setting


def machine_facts(device: torch.device) -> dict[str, Setting]:
    """Processor, GPU and versions, by name. It takes no measurement."""
    gpu = {"gpu": torch.cuda.get_device_name(device)} if device.type == "cuda" else {}
    return {
        "cpu": read_processor().name or platform.machine() or "unknown",
        "processors": processors(),
        **gpu,
        "device": str(device),
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": version_of("torch") or torch.__version__,
        "toolkit": toolkit_version(),
    }
