"""NVIDIA's management library (NVML) through `nvidia-ml-py`: which GPUs there are, and what one is doing.

NVML numbers GPUs by their place on the PCI bus, CUDA by speed unless CUDA_DEVICE_ORDER says otherwise. The PCI bus id
names the same GPU in both.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

INSTALL = "pip install nvidia-ml-py"
MISSING = "nvidia-ml-py cannot be imported"
FAILED = "NVML failed"
NO_ANSWER = f"{FAILED}: the driver does not answer"
LIMIT_S = 20.0  # after which the driver counts as hung; it takes seconds where it sleeps between calls
# Reasons why a GPU ran slower than it could (`nvmlClocksEventReason…`). Idleness and clocks that the user set are none.
THROTTLING = {
    0x04: "power cap",  # SwPowerCap
    0x08: "hardware slowdown",  # HwSlowdown
    0x20: "thermal slowdown (software)",  # SwThermalSlowdown
    0x40: "thermal slowdown (hardware)",  # HwThermalSlowdown
    0x80: "power brake",  # HwPowerBrakeSlowdown
}
_MIB = 2**20


class NvmlError(Exception):
    """NVML cannot be used; the message is a clause that says why and, where that helps, what to install."""


class NvmlGpu:
    """One GPU. What it doesn't report is None: Jetsons and virtual GPUs report little."""

    def __init__(self, library: Any, handle: Any) -> None:
        self._library, self._handle = library, handle

    @property
    def name(self) -> str:
        """The product's name."""
        return self._read("nvmlDeviceGetName") or "unknown"

    @property
    def uuid(self) -> str:
        """NVIDIA's identifier, such as "GPU-8f2c…"; empty where the GPU doesn't report it."""
        return self._read("nvmlDeviceGetUUID") or ""

    @property
    def pci_bus_id(self) -> str | None:
        """Such as "00000000:01:00.0"."""
        info = self._read("nvmlDeviceGetPciInfo")
        return None if info is None else str(info.busId)

    @property
    def compute_capability(self) -> str | None:
        """Such as "8.9"."""
        found = self._read("nvmlDeviceGetCudaComputeCapability")
        return None if found is None else f"{found[0]}.{found[1]}"

    @property
    def memory_mib(self) -> tuple[float, float, float] | None:
        """Free, used and total memory in MiB; what the driver reserves counts to the total alone."""
        version = self._library.nvmlMemory_v2
        found = self._read("nvmlDeviceGetMemoryInfo", version=version) or self._read("nvmlDeviceGetMemoryInfo")
        return None if found is None else (found.free / _MIB, found.used / _MIB, found.total / _MIB)

    @property
    def clock_mhz(self) -> float | None:
        """The multiprocessors' clock now."""
        return self._read("nvmlDeviceGetClockInfo", self._library.NVML_CLOCK_SM)

    @property
    def clock_max_mhz(self) -> float | None:
        """The highest clock of the multiprocessors that the GPU is made for."""
        return self._read("nvmlDeviceGetMaxClockInfo", self._library.NVML_CLOCK_SM)

    @property
    def memory_clock_mhz(self) -> float | None:
        """The memory's clock now."""
        return self._read("nvmlDeviceGetClockInfo", self._library.NVML_CLOCK_MEM)

    @property
    def busy_percent(self) -> float | None:
        """The percentage of the last moments in which a kernel ran."""
        found = self._read("nvmlDeviceGetUtilizationRates")
        return None if found is None else found.gpu

    @property
    def temperature_c(self) -> float | None:
        """The chip's temperature in °C."""
        return self._read("nvmlDeviceGetTemperature", self._library.NVML_TEMPERATURE_GPU)

    @property
    def power_w(self) -> float | None:
        """The board's power in watts."""
        milliwatts = self._read("nvmlDeviceGetPowerUsage")
        return None if milliwatts is None else milliwatts / 1000

    @property
    def throttling(self) -> tuple[str, ...]:
        """Why the GPU runs slower than it could; empty where nothing slows it, or where it doesn't report."""
        bits = self._read("nvmlDeviceGetCurrentClocksEventReasons")  # drivers before 535 know the older name alone
        if bits is None:
            bits = self._read("nvmlDeviceGetCurrentClocksThrottleReasons") or 0
        return tuple(reason for bit, reason in THROTTLING.items() if bits & bit)

    def _read(self, name: str, *arguments: Any, **keywords: Any) -> Any:
        """What a function says of this GPU; None where the GPU, its driver or this library doesn't support it."""
        function: Callable[..., Any] | None = getattr(self._library, name, None)
        if function is None:
            return None
        try:
            return function(self._handle, *arguments, **keywords)
        except self._library.NVMLError:
            return None


class Nvml:
    """The opened library."""

    def __init__(self, library: Any) -> None:
        self._library = library

    @property
    def driver(self) -> str:
        """The driver's version. Raises NvmlError."""
        return self._call("nvmlSystemGetDriverVersion")

    def gpus(self) -> list[NvmlGpu]:
        """All GPUs by their place on the PCI bus. Raises NvmlError."""
        count = self._call("nvmlDeviceGetCount")
        return [NvmlGpu(self._library, self._call("nvmlDeviceGetHandleByIndex", index)) for index in range(count)]

    def gpu_of_cuda(self, device: int, pci_bus_id: Callable[[int], str | None]) -> NvmlGpu:
        """The GPU that CUDA calls `device`. Raises NvmlError where there is no such GPU.

        Of several GPUs, what CUDA itself says decides: `pci_bus_id` is asked for it, such as `runtime.cuda.pci_bus_id`.
        Where it doesn't know, the GPU is the one that CUDA_VISIBLE_DEVICES lists in that place, else the one of that
        index on the bus, which is another where CUDA orders unlike GPUs by speed.
        """
        gpus = self.gpus()
        if len(gpus) > 1 and (bus_id := pci_bus_id(device)) is not None:
            return NvmlGpu(self._library, self._call("nvmlDeviceGetHandleByPciBusId", bus_id))
        visible = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
        name = visible[device] if device < len(visible) else str(device)
        if name.isdigit() and int(name) < len(gpus):
            return gpus[int(name)]
        for gpu in gpus:
            if gpu.uuid.startswith(name):  # CUDA takes abbreviations
                return gpu
        raise NvmlError(f"NVML lists no GPU {name}")

    def _call(self, name: str, *arguments: Any) -> Any:
        try:
            return getattr(self._library, name)(*arguments)
        except self._library.NVMLError as error:
            raise NvmlError(f"{FAILED}: {error}") from error


@contextmanager
def open_nvml() -> Iterator[Nvml]:
    """The library while the block runs. Raises NvmlError where the package or the driver is missing, or fails."""
    try:
        library: Any = importlib.import_module("pynvml")
    except ImportError as error:
        raise NvmlError(f"{MISSING} ({error}): {INSTALL}") from error
    try:
        library.nvmlInit()
    except library.NVMLError as error:
        if error.value == library.NVML_ERROR_LIBRARY_NOT_FOUND:
            raise NvmlError("NVML, which comes with NVIDIA's driver, was not found") from error
        raise NvmlError(f"{FAILED}: {error}") from error
    try:
        yield Nvml(library)
    finally:
        with suppress(library.NVMLError):
            library.nvmlShutdown()
