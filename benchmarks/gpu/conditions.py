"""The conditions of a GPU report: card, driver, clocks, processor, versions, code; and the card while a step runs."""

from __future__ import annotations

import hashlib
import json
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from runtime.machine.conditions import describe_machine, describe_run, version_of
from runtime.machine.gpu_watch import GpuSampler
from runtime.machine.gpus import list_gpus
from runtime.machine.nvml import NvmlError, NvmlGpu, open_nvml
from runtime.machine.processor import read_processor

from .steps import ROOT

UNKNOWN = "unknown"
DISTRIBUTIONS = (
    "torch",
    "torchvision",
    "triton",
    "onnx",
    "onnxscript",
    "onnxruntime",
    "onnxruntime-gpu",
    "numpy",
    "opencv-python-headless",
    "pycocotools",
    "cuda-python",
    "cuda-bindings",
    "cuda-core",
    "cupy-cuda13x",
    "cupy-cuda12x",
    "pycuda",
    "nvidia-ml-py",
    "tensorrt",
    "tensorrt-cu12",
    "tensorrt-cu13",
    "tensorrt_rtx",
    "pytest",
)
_SOURCES = ("benchmarks", "export", "runtime", "tests", "train")
_SUFFIXES = (".py", ".cu", ".ptx")
# What only torch can say, asked in another process: the report itself must not hold memory of the card.
_ASK_TORCH = """
import json, torch
found = {"CUDA of torch": torch.version.cuda, "cuDNN": torch.backends.cudnn.version()}
if torch.cuda.is_available():
    card = torch.cuda.get_device_properties(0)
    found |= {"card": card.name, "compute capability": f"{card.major}.{card.minor}",
              "multiprocessors": card.multi_processor_count, "memory (GiB)": round(card.total_memory / 2**30, 1)}
print(json.dumps(found))
"""


def describe() -> dict[str, Any]:
    """The conditions by their names, in the order of the page; what isn't known or installed says so."""
    found = list_gpus()
    torch = _ask_torch()
    machine, run = describe_machine(), describe_run("scripts/gpu_report.sh")
    gpu = found.gpus[0] if found.gpus else None
    nothing = f"none: {found.problem}"
    return {
        # CUDA may number cards otherwise than the driver does; torch names the one that is measured.
        "card": torch.get("card") or (gpu.name if gpu else nothing),
        "number of cards": len(found.gpus) or UNKNOWN,
        "driver": found.driver or "none",
        "compute capability": torch.get("compute capability") or (gpu and gpu.compute_capability) or UNKNOWN,
        "clocks of the idle card": _clocks(),
        **{name: value for name, value in torch.items() if name not in ("card", "compute capability")},
        "processor": str(read_processor()),
        "processors": f"{machine.usable_processors} of {machine.processors}",
        "memory of the host (GB)": machine.memory_gb,
        "processors busy with other work": machine.busy_share,
        "system": machine.system,
        "python": machine.python,
        "versions": {name: version_of(name) or "not installed" for name in DISTRIBUTIONS},
        "compute-sanitizer": shutil.which("compute-sanitizer") or "not on the PATH",
        "environment": machine.environment,
        "date": run.date,
        "toolkit": run.toolkit_version,
        "git commit": run.git or UNKNOWN,
        "sources": code_digest(),
    }


def code_digest(root: Path = ROOT) -> str:
    """The first digits of the SHA-256 of the sources: two runs with the same digits ran the same code."""
    digest = hashlib.sha256()
    for path in sorted(path for folder in _SOURCES for path in (root / folder).rglob("*") if path.suffix in _SUFFIXES):
        digest.update(f"{path.relative_to(root)}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()[:12]


def _ask_torch() -> dict[str, Any]:
    try:
        answer = subprocess.run([sys.executable, "-c", _ASK_TORCH], capture_output=True, text=True, timeout=120)
        return json.loads(answer.stdout.splitlines()[-1])
    except (OSError, subprocess.SubprocessError, ValueError, IndexError) as error:
        return {"CUDA of torch": f"{UNKNOWN}: torch didn't answer ({type(error).__name__})"}


def _clocks() -> str:
    with suppress(NvmlError), open_nvml() as nvml:
        gpu = nvml.gpu_of_cuda(0, lambda device: None)
        return (
            f"SM {gpu.clock_mhz} MHz (at most {gpu.clock_max_mhz}), memory {gpu.memory_clock_mhz} MHz, "
            f"{gpu.power_w} W, {gpu.temperature_c} °C, slowed by: {', '.join(gpu.throttling) or 'nothing'}"
        )
    return UNKNOWN


class CardWatch(GpuSampler[dict[str, Any]]):
    """Samples the card while the block runs; `summary` is what it saw, empty where there is no card."""

    def __init__(self, interval_ms: int = 250) -> None:
        super().__init__(_sample, interval_ms=interval_ms)

    def summary(self) -> dict[str, Any]:
        """Median clocks, power, highest temperature, memory and throttling over the samples.

        Clocks and power are those of the samples in which a kernel ran, where the card says so: an idle card sleeps.
        """
        samples = list(self.samples)
        busy = [sample for sample in samples if sample["busy"]] or samples
        if not samples:
            return {}
        reasons = sorted({reason for sample in busy for reason in sample["throttling"]})
        return {
            "samples": len(samples),
            "samples with a kernel": sum(bool(sample["busy"]) for sample in samples),
            "SM clock, median (MHz)": _of(statistics.median, busy, "sm_mhz"),
            "SM clock, lowest (MHz)": _of(min, busy, "sm_mhz"),
            "memory clock, median (MHz)": _of(statistics.median, busy, "memory_mhz"),
            "power, median (W)": _of(statistics.median, busy, "power_w"),
            "power, highest (W)": _of(max, samples, "power_w"),
            "temperature, highest (°C)": _of(max, samples, "temperature_c"),
            "memory, highest (MiB)": _of(max, samples, "memory_mib"),
            "throttled (share of samples)": {
                reason: round(sum(reason in sample["throttling"] for sample in busy) / len(busy), 3)
                for reason in reasons
            }
            or "not throttled",
        }


def _sample(gpu: NvmlGpu) -> dict[str, Any]:
    memory = gpu.memory_mib
    return {
        "busy": gpu.busy_percent,
        "sm_mhz": gpu.clock_mhz,
        "memory_mhz": gpu.memory_clock_mhz,
        "power_w": gpu.power_w,
        "temperature_c": gpu.temperature_c,
        "memory_mib": None if memory is None else memory[1],
        "throttling": gpu.throttling,
    }


def _of(summarise: Callable[[Iterable[float]], float], samples: list[dict[str, Any]], name: str) -> float | None:
    values = [sample[name] for sample in samples if sample[name] is not None]
    return summarise(values) if values else None
