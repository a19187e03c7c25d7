"""The NVIDIA driver and the GPUs of this machine."""

from __future__ import annotations

import platform
import re
import threading
from dataclasses import dataclass
from pathlib import Path

from .nvml import FAILED, LIMIT_S, MISSING, NO_ANSWER, NvmlError, NvmlGpu, open_nvml

DRIVER_FILE = Path("/proc/driver/nvidia/version")  # containers have it even without NVML


@dataclass(frozen=True)
class Gpu:
    """A GPU; None for what it doesn't report."""

    index: int  # its place on the PCI bus; CUDA may number GPUs otherwise
    name: str
    compute_capability: str | None  # such as "8.9"
    memory_free_mb: float | None
    memory_total_mb: float | None
    pci_bus_id: str | None = None  # such as "00000000:01:00.0"


@dataclass(frozen=True)
class Gpus:
    """The driver and all GPUs."""

    driver: str | None  # version; None: no driver answers
    gpus: tuple[Gpu, ...]
    problem: str | None  # why the GPUs cannot be listed, in a clause; None where there are some

    @property
    def driver_failed(self) -> bool:
        """Whether a driver is installed that doesn't answer."""
        return self.problem is not None and self.problem.startswith(FAILED)

    @property
    def driver_unknown(self) -> bool:
        """Whether a driver may be installed that nothing here can ask: without nvidia-ml-py only Linux tells of it."""
        if self.driver is not None or self.problem is None or not self.problem.startswith(MISSING):
            return False
        return platform.system() != "Linux" or "microsoft" in platform.release().lower()  # WSL: the driver is Windows'


def list_gpus(limit_s: float = LIMIT_S) -> Gpus:
    """The driver and the GPUs of this machine; never raises, and waits at most `limit_s` for a driver that hangs."""
    found: list[Gpus] = []
    thread = threading.Thread(target=lambda: found.append(_list_gpus()), name="list gpus", daemon=True)
    thread.start()
    thread.join(limit_s)
    return found[0] if found else Gpus(kernel_driver(), (), NO_ANSWER)


def _list_gpus() -> Gpus:
    try:
        with open_nvml() as nvml:
            gpus = tuple(_described(index, gpu) for index, gpu in enumerate(nvml.gpus()))
            return Gpus(nvml.driver, gpus, None if gpus else "the driver lists no GPU")
    except NvmlError as error:
        return Gpus(kernel_driver(), (), str(error))


def _described(index: int, gpu: NvmlGpu) -> Gpu:
    memory = gpu.memory_mib
    free, total = (memory[0], memory[2]) if memory is not None else (None, None)
    return Gpu(index, gpu.name, gpu.compute_capability, free, total, gpu.pci_bus_id)


def kernel_driver() -> str | None:
    """The version of the driver's kernel module; None where it isn't loaded."""
    try:
        text = DRIVER_FILE.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    found = re.search(r"Kernel Module\s+(?:for \S+\s+)?(\d+(?:\.\d+)+)", text)
    return found[1] if found else None
