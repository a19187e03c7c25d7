"""A strict stand-in for `pynvml` (nvidia-ml-py) on a machine with the GPUs that a test wants.

Names, signatures, units and error codes are those of the real binding, which test_nvml.py compares where it is
installed. A call before nvmlInit or after the last nvmlShutdown fails, and so does a handle that NVML didn't give.
"""

from __future__ import annotations

import types
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

ERRORS = {
    "NVML_ERROR_UNINITIALIZED": 1,
    "NVML_ERROR_INVALID_ARGUMENT": 2,
    "NVML_ERROR_NOT_SUPPORTED": 3,
    "NVML_ERROR_NOT_FOUND": 6,
    "NVML_ERROR_DRIVER_NOT_LOADED": 9,
    "NVML_ERROR_LIBRARY_NOT_FOUND": 12,
    "NVML_ERROR_FUNCTION_NOT_FOUND": 13,
    "NVML_ERROR_LIB_RM_VERSION_MISMATCH": 18,
}
CONSTANTS = {"NVML_CLOCK_SM": 1, "NVML_CLOCK_MEM": 2, "NVML_TEMPERATURE_GPU": 0, "nvmlMemory_v2": 0x02000028}
MIB = 2**20


@dataclass
class FakeGpu:
    """A GPU as NVML reports it; `lacks` are functions that it doesn't support."""

    name: str = "NVIDIA L4"
    pci_bus_id: str = "00000000:01:00.0"
    uuid: str = "GPU-8f2c1d5e"
    compute_capability: tuple[int, int] = (8, 9)
    memory: tuple[int, int, int] = (22500 * MIB, 100 * MIB, 23034 * MIB)  # free, used, total; the rest is reserved
    clocks: tuple[int, ...] = (2040,)  # MHz of the multiprocessors, one call after another, the last one for good
    clock_max: int = 2040
    memory_clock: int = 6251
    busy: int = 97  # percent
    temperatures: tuple[int, ...] = (61,)
    power: int = 71_200  # milliwatts
    reasons: tuple[int, ...] = (0,)
    lacks: tuple[str, ...] = ()
    calls: dict[str, int] = field(default_factory=dict)

    def next(self, what: str) -> int:
        """The next of the values that change."""
        values = getattr(self, what)
        self.calls[what] = self.calls.get(what, 0) + 1
        return values[min(self.calls[what], len(values)) - 1]


class NVMLError(Exception):
    """As the binding's: the code in `value`, the library's own words as text."""

    def __init__(self, value: int) -> None:
        super().__init__(value)
        self.value = value

    def __str__(self) -> str:
        name = next(name for name, value in ERRORS.items() if value == self.value)
        return name.removeprefix("NVML_ERROR_").replace("_", " ").title()


class FakeNvml(types.ModuleType):
    """The module. `broken` names the error of nvmlInit; `old` drivers lack functions of later ones."""

    def __init__(
        self, gpus: Sequence[FakeGpu] = (), driver: str = "580.65.06", broken: str = "", old: tuple[str, ...] = ()
    ) -> None:
        super().__init__("pynvml")
        # NVML numbers GPUs by their place on the bus.
        self._gpus = sorted(gpus, key=lambda gpu: gpu.pci_bus_id)
        self._driver, self._broken, self._old = driver, broken, old
        self.users = 0  # nvmlInit without nvmlShutdown
        self.NVMLError = NVMLError
        for name, value in (ERRORS | CONSTANTS).items():
            setattr(self, name, value)

    def _fail(self, name: str) -> NVMLError:
        return NVMLError(ERRORS[f"NVML_ERROR_{name}"])

    def _system(self) -> None:
        if not self.users:
            raise self._fail("UNINITIALIZED")

    def _gpu(self, handle: Any, function: str) -> FakeGpu:
        self._system()
        if function in self._old:
            raise self._fail("FUNCTION_NOT_FOUND")
        if not any(handle is gpu for gpu in self._gpus):
            raise self._fail("INVALID_ARGUMENT")
        if function in handle.lacks:
            raise self._fail("NOT_SUPPORTED")
        return handle

    def nvmlInit(self) -> None:
        if self._broken:
            raise self._fail(self._broken)
        self.users += 1

    def nvmlShutdown(self) -> None:
        self._system()
        self.users -= 1

    def nvmlSystemGetDriverVersion(self) -> str:
        self._system()
        return self._driver

    def nvmlDeviceGetCount(self) -> int:
        self._system()
        return len(self._gpus)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> FakeGpu:
        self._system()
        if not 0 <= index < len(self._gpus):
            raise self._fail("INVALID_ARGUMENT")
        return self._gpus[index]

    def nvmlDeviceGetHandleByPciBusId(self, pciBusId: str) -> FakeGpu:
        self._system()
        for gpu in self._gpus:
            if parts_of(gpu.pci_bus_id) == parts_of(pciBusId):
                return gpu
        raise self._fail("NOT_FOUND")

    def nvmlDeviceGetName(self, handle: Any) -> str:
        return self._gpu(handle, "nvmlDeviceGetName").name

    def nvmlDeviceGetUUID(self, handle: Any) -> str:
        return self._gpu(handle, "nvmlDeviceGetUUID").uuid

    def nvmlDeviceGetPciInfo(self, handle: Any) -> SimpleNamespace:
        return SimpleNamespace(busId=self._gpu(handle, "nvmlDeviceGetPciInfo").pci_bus_id)

    def nvmlDeviceGetCudaComputeCapability(self, handle: Any) -> tuple[int, int]:
        return self._gpu(handle, "nvmlDeviceGetCudaComputeCapability").compute_capability

    def nvmlDeviceGetMemoryInfo(self, handle: Any, version: int | None = None) -> SimpleNamespace:
        if version is not None and "nvmlDeviceGetMemoryInfo_v2" in self._old:
            raise self._fail("FUNCTION_NOT_FOUND")
        assert version in (None, CONSTANTS["nvmlMemory_v2"])
        free, used, total = self._gpu(handle, "nvmlDeviceGetMemoryInfo").memory
        return SimpleNamespace(free=free, used=used if version else total - free, total=total)

    def nvmlDeviceGetClockInfo(self, handle: Any, type: int) -> int:
        gpu = self._gpu(handle, "nvmlDeviceGetClockInfo")
        if type == CONSTANTS["NVML_CLOCK_MEM"]:
            return gpu.memory_clock
        assert type == CONSTANTS["NVML_CLOCK_SM"]
        return gpu.next("clocks")

    def nvmlDeviceGetUtilizationRates(self, handle: Any) -> SimpleNamespace:
        return SimpleNamespace(gpu=self._gpu(handle, "nvmlDeviceGetUtilizationRates").busy, memory=40)

    def nvmlDeviceGetMaxClockInfo(self, handle: Any, type: int) -> int:
        assert type == CONSTANTS["NVML_CLOCK_SM"]
        return self._gpu(handle, "nvmlDeviceGetMaxClockInfo").clock_max

    def nvmlDeviceGetTemperature(self, handle: Any, sensor: int) -> int:
        assert sensor == CONSTANTS["NVML_TEMPERATURE_GPU"]
        return self._gpu(handle, "nvmlDeviceGetTemperature").next("temperatures")

    def nvmlDeviceGetPowerUsage(self, handle: Any) -> int:
        return self._gpu(handle, "nvmlDeviceGetPowerUsage").power

    def nvmlDeviceGetCurrentClocksEventReasons(self, handle: Any) -> int:
        return self._gpu(handle, "nvmlDeviceGetCurrentClocksEventReasons").next("reasons")

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, handle: Any) -> int:
        return self._gpu(handle, "nvmlDeviceGetCurrentClocksThrottleReasons").next("reasons")


def parts_of(pci_bus_id: str) -> list[int]:
    """Domain, bus, device and function, which NVML and CUDA write with other numbers of digits."""
    return [int(part, 16) for part in pci_bus_id.replace(".", ":").split(":")]
