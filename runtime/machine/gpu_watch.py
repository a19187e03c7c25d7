"""A GPU while something runs on it: clocks, temperature, power, throttling."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Generic, TypeVar

from .nvml import LIMIT_S, NO_ANSWER, NvmlError, NvmlGpu, open_nvml

Sample = TypeVar("Sample")
Watch = TypeVar("Watch", bound="GpuSampler[Any]")


@dataclass(frozen=True)
class GpuSample:
    """What a GPU reported at one moment; None for what it doesn't report."""

    clock_mhz: float | None
    temperature_c: float | None
    power_w: float | None
    memory_used_mb: float | None
    throttling: tuple[str, ...]


@dataclass(frozen=True)
class GpuReport:
    """Samples taken while something ran, summarised."""

    name: str
    driver: str
    samples: int
    clock_mhz: tuple[float, float] | None  # lowest and highest
    clock_max_mhz: float | None  # that the GPU is made for
    temperature_c: float | None  # the highest
    power_w: float | None  # the highest
    memory_used_mb: float | None  # the most, of all processes
    throttling: dict[str, float]  # reason → share of the samples


class GpuSampler(Generic[Sample]):
    """Calls `take` with a GPU in a thread, again and again while the block runs, and keeps what it returns.

    `device` is CUDA's index. Of several GPUs, `pci_bus_id` (such as `runtime.cuda.pci_bus_id`) tells which one it is.
    Where the GPU can't be watched, the block runs all the same: there are no samples, and `problem` says why.
    """

    def __init__(
        self,
        take: Callable[[NvmlGpu], Sample],
        device: int = 0,
        pci_bus_id: Callable[[int], str | None] = lambda device: None,
        interval_ms: int = 200,
    ) -> None:
        self.problem: str | None = None
        self.samples: list[Sample] = []
        self.about: tuple[str, str, float | None] | None = None  # name, driver, highest clock; None: not watched
        self._take, self._device, self._pci_bus_id, self._interval_s = take, device, pci_bus_id, interval_ms / 1000
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="gpu watch", daemon=True)

    def __enter__(self: Watch) -> Watch:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join(LIMIT_S)  # a driver that hangs must not hold the measurement up
        if self._thread.is_alive():
            self.problem = NO_ANSWER

    def _watch(self) -> None:
        try:
            with open_nvml() as nvml:
                gpu = nvml.gpu_of_cuda(self._device, self._pci_bus_id)
                self.about = (gpu.name, nvml.driver, gpu.clock_max_mhz)
                while True:
                    self.samples.append(self._take(gpu))
                    if self._ended.wait(self._interval_s):
                        return
        except NvmlError as error:
            self.problem = str(error)


class GpuWatch(GpuSampler[GpuSample]):
    """Samples a GPU's clocks, temperature, power, memory and throttling while the block runs; see `GpuSampler`."""

    def __init__(
        self, device: int = 0, pci_bus_id: Callable[[int], str | None] = lambda device: None, interval_ms: int = 200
    ) -> None:
        super().__init__(take_sample, device, pci_bus_id, interval_ms)

    def report(self) -> GpuReport | None:
        """What was seen until now; None where the GPU can't be watched."""
        return None if self.about is None else summarise(*self.about, tuple(self.samples))


def take_sample(gpu: NvmlGpu) -> GpuSample:
    """What a GPU reports now."""
    memory = gpu.memory_mib
    return GpuSample(
        clock_mhz=gpu.clock_mhz,
        temperature_c=gpu.temperature_c,
        power_w=gpu.power_w,
        memory_used_mb=memory[1] if memory is not None else None,
        throttling=gpu.throttling,
    )


def summarise(name: str, driver: str, clock_max_mhz: float | None, samples: Sequence[GpuSample]) -> GpuReport | None:
    """The samples of one GPU as a report; None where there is no sample."""
    if not samples:
        return None
    clocks = [sample.clock_mhz for sample in samples if sample.clock_mhz is not None]
    reasons = sorted({reason for sample in samples for reason in sample.throttling})
    return GpuReport(
        name=name,
        driver=driver,
        samples=len(samples),
        clock_mhz=(min(clocks), max(clocks)) if clocks else None,
        clock_max_mhz=clock_max_mhz,
        temperature_c=_highest([sample.temperature_c for sample in samples]),
        power_w=_highest([sample.power_w for sample in samples]),
        memory_used_mb=_highest([sample.memory_used_mb for sample in samples]),
        throttling={reason: sum(reason in s.throttling for s in samples) / len(samples) for reason in reasons},
    )


def _highest(values: Sequence[float | None]) -> float | None:
    return max((value for value in values if value is not None), default=None)
