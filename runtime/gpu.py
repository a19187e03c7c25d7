"""What NVIDIA's own tool says of a GPU while something runs on it: clocks, temperature, throttling, memory."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType

TOOL = "nvidia-smi"
FIELDS = (
    "name",
    "driver_version",
    "clocks.sm",
    "clocks.max.sm",
    "clocks.mem",
    "temperature.gpu",
    "power.draw",
    "memory.used",
    "memory.total",
    "clocks_throttle_reasons.active",
)
# Bits of clocks_throttle_reasons.active (NVML, nvmlClocksEventReasons) that say that it ran slower than it could.
# Idleness and clocks that the user fixed are left out.
THROTTLING = {
    0x04: "power cap",
    0x08: "hardware slowdown",
    0x20: "thermal slowdown (software)",
    0x40: "thermal slowdown (hardware)",
    0x80: "power brake",
}


@dataclass(frozen=True)
class GpuSample:
    """One line of the tool; None for what this GPU doesn't report."""

    name: str
    driver: str
    clock_mhz: float | None
    clock_max_mhz: float | None
    memory_clock_mhz: float | None
    temperature_c: float | None
    power_w: float | None
    memory_used_mb: float | None
    memory_total_mb: float | None
    throttling: tuple[str, ...]


@dataclass(frozen=True)
class GpuReport:
    """Of the samples taken while something ran."""

    name: str
    driver: str
    samples: int
    clock_mhz: tuple[float, float] | None  # least and most
    clock_max_mhz: float | None  # that the GPU is made for
    temperature_c: float | None  # the highest
    power_w: float | None  # the highest
    memory_used_mb: float | None  # the most, of all processes
    throttling: dict[str, float]  # reason → share of the samples


class GpuWatch:
    """Samples a GPU while the block runs; `report()` is None where there is no nvidia-smi or it said nothing."""

    def __init__(self, device: int = 0, interval_ms: int = 200) -> None:
        self._command = [
            TOOL,
            f"--query-gpu={','.join(FIELDS)}",
            "--format=csv,noheader,nounits",
            f"--id={tool_index(device)}",
            f"--loop-ms={interval_ms}",
        ]
        self._process: subprocess.Popen[bytes] | None = None
        self._samples: list[GpuSample] = []

    def __enter__(self) -> GpuWatch:
        self._lines = tempfile.TemporaryFile()  # not a pipe, which nobody would empty meanwhile
        if shutil.which(TOOL) is not None:
            self._process = subprocess.Popen(
                self._command, stdout=self._lines, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait()
            self._lines.seek(0)
            lines = self._lines.read().decode("utf-8", "replace").splitlines()
            self._samples = [sample for line in lines if (sample := parse_line(line)) is not None]
        self._lines.close()

    def report(self) -> GpuReport | None:
        return summarise(self._samples)


def tool_index(device: int) -> str:
    """What the tool calls the GPU that CUDA calls `device`, where CUDA_VISIBLE_DEVICES hides or reorders some.

    Without it the tool counts by place on the bus, CUDA by speed: CUDA_DEVICE_ORDER=PCI_BUS_ID makes them agree.
    """
    visible = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    return visible[device] if device < len(visible) else str(device)


def parse_line(line: str) -> GpuSample | None:
    """A line of the tool's CSV; None for one that is cut short or an error message."""
    cells = [cell.strip() for cell in line.split(",")]
    if len(cells) != len(FIELDS):
        return None
    clock, clock_max, memory_clock, temperature, power, used, total = map(_number, cells[2:-1])
    return GpuSample(
        cells[0], cells[1], clock, clock_max, memory_clock, temperature, power, used, total, _reasons(cells[-1])
    )


def summarise(samples: Sequence[GpuSample]) -> GpuReport | None:
    if not samples:
        return None
    clocks = [sample.clock_mhz for sample in samples if sample.clock_mhz is not None]
    reasons = sorted({reason for sample in samples for reason in sample.throttling})
    return GpuReport(
        name=samples[0].name,
        driver=samples[0].driver,
        samples=len(samples),
        clock_mhz=(min(clocks), max(clocks)) if clocks else None,
        clock_max_mhz=samples[0].clock_max_mhz,
        temperature_c=_most([sample.temperature_c for sample in samples]),
        power_w=_most([sample.power_w for sample in samples]),
        memory_used_mb=_most([sample.memory_used_mb for sample in samples]),
        throttling={reason: sum(reason in s.throttling for s in samples) / len(samples) for reason in reasons},
    )


def _number(cell: str) -> float | None:
    """The tool writes [N/A] or [Not Supported] for what a GPU doesn't report."""
    try:
        return float(cell)
    except ValueError:
        return None


def _reasons(cell: str) -> tuple[str, ...]:
    try:
        bits = int(cell, 16)
    except ValueError:
        return ()
    return tuple(reason for bit, reason in THROTTLING.items() if bits & bit)


def _most(values: Sequence[float | None]) -> float | None:
    return max((value for value in values if value is not None), default=None)
