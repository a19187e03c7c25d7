"""What NVIDIA's own tool says of a machine's GPUs, and of one while something runs on it: clocks, throttling."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
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

_LISTED = ("index", "name", "driver_version", "memory.free", "memory.total", "compute_cap")
_TOOL_S = 20  # after which the tool counts as hung; it takes seconds where the driver sleeps between calls
_DRIVER_FILE = Path("/proc/driver/nvidia/version")  # which containers have even without the tool


@dataclass(frozen=True)
class Gpu:
    """As the tool numbers and names it; None for what this GPU doesn't report."""

    index: int
    name: str
    compute_capability: str | None  # such as "8.9"
    memory_free_mb: float | None
    memory_total_mb: float | None


@dataclass(frozen=True)
class Gpus:
    driver: str | None  # version; None: no driver answers
    gpus: tuple[Gpu, ...]
    problem: str | None  # why there is no driver or GPU, in a clause; None where there are both


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


def list_gpus() -> Gpus:
    """The driver and the GPUs of this machine; never raises."""
    text, problem = _ask(_LISTED)
    if text is None and problem is not None and "compute_cap" in problem:  # drivers before 470 don't know it
        text, problem = _ask(_LISTED[:-1])
    rows = [row for line in (text or "").splitlines() if (row := _listed(line)) is not None]
    if rows:
        return Gpus(rows[0][0], tuple(gpu for _, gpu in rows), None)
    return Gpus(_driver_of_the_kernel(), (), problem or f"{TOOL} lists no GPU")


def _ask(fields: Sequence[str]) -> tuple[str | None, str | None]:
    """The tool's answer, or why there is none."""
    if shutil.which(TOOL) is None:
        return None, f"{TOOL} is not installed"
    command = [TOOL, f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=_TOOL_S, stdin=subprocess.DEVNULL
        )
    except subprocess.TimeoutExpired:
        return None, f"{TOOL} does not answer"
    except OSError as error:
        return None, f"{TOOL} cannot be run: {error.strerror or error}"
    if done.returncode != 0:
        said = [line.strip() for line in (done.stderr + done.stdout).splitlines() if line.strip()]
        return None, f"{TOOL} failed: {said[0][:200] if said else f'exit code {done.returncode}'}"
    return done.stdout, None


def _listed(line: str) -> tuple[str, Gpu] | None:
    """The driver's version and the GPU of a line of `list_gpus`; None for a line that is something else."""
    cells = [cell.strip() for cell in line.split(",")]
    if len(cells) not in (len(_LISTED) - 1, len(_LISTED)) or not cells[0].isdigit():
        return None
    capability = cells[5] if len(cells) == len(_LISTED) and _number(cells[5]) is not None else None
    return cells[2], Gpu(int(cells[0]), cells[1], capability, _number(cells[3]), _number(cells[4]))


def _driver_of_the_kernel() -> str | None:
    try:
        text = _DRIVER_FILE.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    found = re.search(r"Kernel Module\s+(?:for \S+\s+)?(\d+(?:\.\d+)+)", text)
    return found[1] if found else None


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
