"""Everything that the doctor finds out about a machine, as one record."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from importlib import metadata
from typing import Any

from ..command_names import DOCTOR
from ..machine.conditions import LIBRARIES, Machine, Run, available_memory_gb, describe_machine, describe_run
from ..machine.cuda_libraries import Library, cuda_libraries, installed_distributions
from ..machine.gpus import Gpus, list_gpus
from ..machine.processor import Processor, read_processor
from .findings import find_problems, int8_advice
from .trials import Trial, run_trials

# Packages shown besides `LIBRARIES`, which a measurement names.
_MORE = ("torch", "torchvision", "timm", "onnx", "onnxscript", "onnxruntime-ep-nv-tensorrt-rtx", "pycuda")
_CUDA_WHEELS = ("nvidia-cuda-runtime", "nvidia-cublas", "nvidia-cudnn", "nvidia-cuda-nvrtc")


@dataclass(frozen=True)
class Report:
    """What this machine is, what is installed on it, what runs, and what to mend."""

    run: Run
    machine: Machine
    memory_free_gb: float | None
    processor: Processor
    int8: str  # which int8 files compute exactly on it
    gpus: Gpus
    cuda: list[Library]  # each with the CUDA major that it was built for
    versions: dict[str, str]  # by package
    trials: list[Trial]
    advice: list[str]  # what doesn't fit together and what to install


def diagnose() -> Report:
    """Look at this machine and start every backend; takes a few seconds, more where a library hangs. Never raises."""
    machine = describe_machine()  # first: it watches for a moment how busy the processors are
    processor, gpus, libraries, versions = read_processor(), list_gpus(), cuda_libraries(), installed_versions()
    trials = run_trials()
    return Report(
        describe_run(DOCTOR),
        machine,
        available_memory_gb(),
        processor,
        int8_advice(processor),
        gpus,
        libraries,
        versions,
        trials,
        find_problems(gpus, libraries, versions, processor, trials),
    )


def installed_versions() -> dict[str, str]:
    """Versions of the installed packages that training, export or a backend depends on, by name."""
    found = {}
    for name, distribution in installed_distributions().items():
        if name in LIBRARIES or name in _MORE or name.startswith(_CUDA_WHEELS):
            found[name] = _version(distribution)
    return dict(sorted(found.items()))


def to_jsonable(report: Report) -> dict[str, Any]:
    """The report in types that JSON has, with the processor's derived properties."""
    content = dataclasses.asdict(report)
    content["processor"] |= {
        "features": sorted(report.processor.features),
        "abilities": list(report.processor.abilities),
        "sums_8_bit_products_exactly": report.processor.sums_8_bit_products_exactly,
    }
    return content


def _version(distribution: metadata.Distribution) -> str:
    return str(distribution.metadata["Version"] or "?")
