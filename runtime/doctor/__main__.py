"""What this machine can run, on one screen; for bug reports too: `python -m runtime.doctor [--json]`.

Every backend is started, so it takes a few seconds. The exit code is 0 whatever was found, even where nothing runs:
what is wrong stands in the text, in JSON under "advice". 2: the command line is wrong.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Any

from ..command_names import DOCTOR
from ..errors import run_main
from ..machine.conditions import LIBRARIES, Machine, Run, available_memory_gb, describe_machine, describe_run
from ..machine.cuda_libraries import Library, cuda_libraries, installed_distributions
from ..machine.gpus import Gpus, list_gpus
from ..machine.processor import Processor, read_processor
from .findings import find, int8_advice
from .text import report_as_text
from .trials import Trial, run_trials

# Beside those that a measurement names.
_MORE = ("torch", "torchvision", "timm", "onnx", "onnxscript", "onnxruntime-ep-nv-tensorrt-rtx", "pycuda")
_CUDA_WHEELS = ("nvidia-cuda-runtime", "nvidia-cublas", "nvidia-cudnn", "nvidia-cuda-nvrtc")


@dataclass(frozen=True)
class Report:
    run: Run
    machine: Machine
    memory_free_gb: float | None
    processor: Processor
    int8: str  # which int8 files are right for it
    gpus: Gpus
    cuda: list[Library]  # with the CUDA that each was built for
    versions: dict[str, str]  # of the packages that matter, by name
    trials: list[Trial]
    advice: list[str]  # what doesn't fit together, and what to install; empty: nothing


def examine() -> Report:
    """Look at this machine and try every backend."""
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
        find(gpus, libraries, versions, processor, trials),
    )


def installed_versions() -> dict[str, str]:
    """Versions of the packages that what runs depends on, those that are installed."""
    found = {}
    for name, distribution in installed_distributions().items():
        if name in LIBRARIES or name in _MORE or name.startswith(_CUDA_WHEELS):
            found[name] = _version(distribution)
    return dict(sorted(found.items()))


def as_json(report: Report) -> dict[str, Any]:
    """Everything, in types that JSON has."""
    content = dataclasses.asdict(report)
    content["processor"] |= {
        "features": sorted(report.processor.features),
        "abilities": list(report.processor.abilities),
        "sums_8_bit_products_exactly": report.processor.sums_8_bit_products_exactly,
    }
    return content


def _version(distribution: metadata.Distribution) -> str:
    return str(distribution.metadata["Version"] or "?")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog=DOCTOR, description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    options = parser.parse_args(arguments)
    report = examine()
    print(json.dumps(as_json(report), indent=2) if options.json else report_as_text(report))
    return 0


if __name__ == "__main__":
    run_main(main)
