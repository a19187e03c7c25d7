"""The conditions of a measurement, which are needed to repeat it: machine, load, libraries, code."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path

from ..manifest import toolkit_version
from .processor import processors, read_processor

LIBRARIES = (
    "numpy",
    "opencv-python-headless",
    "pillow",
    "simplejpeg",
    "pycocotools",
    "onnxruntime",
    "onnxruntime-gpu",
    "openvino",
    "tensorrt",
    "tensorrt-cu12",
    "tensorrt-cu13",
    "tensorrt-rtx",
    "cuda-python",
    "mlcommons-loadgen",
)
THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "OMP_WAIT_POLICY",
    "GOMP_SPINCOUNT",
    "OPENCV_FOR_THREADS_NUM",
    "CUDA_VISIBLE_DEVICES",
)
BUSY = 0.1  # share of the processors' time; above it the machine counts as busy with other work
LOOK_S = 0.3  # how long the processors are watched to find that share


@dataclass(frozen=True)
class Machine:
    """The machine that a measurement ran on, and how busy it was before."""

    cpu: str
    processors: int  # of the system
    usable_processors: int  # by this process
    cpu_quota: float | None  # a container's limit, in processors' worth of time; None: no limit is known
    memory_gb: float | None
    system: str
    python: str
    libraries: dict[str, str]  # version by distribution
    environment: dict[str, str]  # variables that set the number of threads or hide devices
    load_average: float | None  # over the last minute before the run
    busy_share: float | None  # of all processors' time just before the run: other work

    @property
    def is_busy(self) -> bool:
        """Whether other work took more than `BUSY` of the processors' time."""
        return self.busy_share is not None and self.busy_share > BUSY


@dataclass(frozen=True)
class Run:
    """When a measurement ran, and from which code."""

    date: str  # ISO 8601, UTC
    command: str
    toolkit_version: str
    git: str | None  # commit of the checkout, "+changes" where it has uncommitted ones; None: no checkout


def describe_machine() -> Machine:
    """This machine now. Call it before the measurement: it watches for `LOOK_S` seconds how busy the processors are."""
    return Machine(
        cpu=read_processor().name or platform.machine() or "unknown",
        processors=os.cpu_count() or 1,
        usable_processors=processors(),
        cpu_quota=_cpu_quota(),
        memory_gb=_memory_gb(),
        system=platform.platform(),
        python=platform.python_version(),
        libraries={name: version for name in LIBRARIES if (version := version_of(name)) is not None},
        environment={name: os.environ[name] for name in THREAD_VARIABLES if name in os.environ},
        load_average=round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        busy_share=busy_share(),
    )


def describe_run(command: str) -> Run:
    """A run of `command` that starts now, with the commit of this toolkit's checkout."""
    date = datetime.now(timezone.utc).isoformat(timespec="seconds")
    return Run(date, command, toolkit_version(), _git_commit(Path(__file__).resolve().parents[2]))


def reset_peak_memory() -> None:
    """Reset the peak that `peak_memory_mb` reports, where the system allows it (Linux)."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory_mb() -> float | None:
    """The process' peak resident memory since `reset_peak_memory`, in MiB; None where the system doesn't report it."""
    return _status_mb("VmHWM")


def memory_mb() -> float | None:
    """The process' resident memory now, in MiB; None where the system doesn't report it."""
    return _status_mb("VmRSS")


def _status_mb(field: str) -> float | None:
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(f"{field}:"):
                return int(line.split()[1]) / 1024
    except OSError:
        pass
    return None


def _cpu_quota() -> float | None:
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return None if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError):
        return None


def busy_share() -> float | None:
    """The share of the processors' time that others use, seen in `LOOK_S` seconds; None where it isn't reported."""
    before = processor_ticks()
    time.sleep(LOOK_S)
    after = processor_ticks()
    if before is None or after is None or after[1] <= before[1]:
        return None
    return round(1 - (after[0] - before[0]) / (after[1] - before[1]), 3)


def processor_ticks() -> tuple[int, int] | None:
    """Idle and total time of all processors since the system started, in ticks; None where it isn't reported."""
    try:
        _, *ticks = Path("/proc/stat").read_text().splitlines()[0].split()
    except (OSError, IndexError, ValueError):
        return None
    counts = [int(tick) for tick in ticks[:8]]  # what follows is guests' time, which the first ones include
    return counts[3] + counts[4], sum(counts)


def _memory_gb() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1)
    except (ValueError, OSError, AttributeError):
        return None


def available_memory_gb() -> float | None:
    """Memory in GB that this process can still allocate, within a container's limit; None where it isn't reported."""
    available = []
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                available.append(int(line.split()[1]) * 1024)
    except (OSError, ValueError):
        pass
    try:
        limit, used = (Path(f"/sys/fs/cgroup/memory.{name}").read_text().strip() for name in ("max", "current"))
        if limit != "max":
            available.append(max(int(limit) - int(used), 0))
    except (OSError, ValueError):
        pass
    return round(min(available) / 1e9, 1) if available else None


def version_of(distribution: str) -> str | None:
    """The installed version of a distribution; None where it isn't installed."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _git_commit(folder: Path) -> str | None:
    """The commit of a checkout; None where there is no git or the folder isn't the root of a checkout."""
    if not (folder / ".git").exists():
        return None
    try:
        head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=folder, capture_output=True, text=True, timeout=10)
        changes = subprocess.run(
            ["git", "status", "--porcelain", "--untracked-files=no"],
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    if head.returncode != 0:
        return None
    return head.stdout.strip() + ("+changes" if changes.stdout.strip() else "")


def command_line(arguments: Sequence[str] | None, program: str) -> str:
    """The command as a user would type it; `arguments` None takes those of the process."""
    return " ".join([f"python -m {program}", *(sys.argv[1:] if arguments is None else arguments)])
