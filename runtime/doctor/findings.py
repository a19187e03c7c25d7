"""Finds drivers and libraries that don't fit together; every finding is one line that names what to install."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from ..machine.cuda_libraries import EXTRAS, Library, cuda_mismatch, driver_fits, driver_problem, install_command
from ..machine.gpus import Gpu, Gpus
from ..machine.processor import Processor
from .trials import Trial

MIN_FREE_MB = 1000  # CUDA and cuDNN alone take about half of it
MIN_CAPABILITY_13 = (7, 5)  # CUDA 13 dropped Maxwell, Pascal and Volta


def int8_advice(processor: Processor) -> str:
    """Which targets of `export.quantize` compute exactly on this processor."""
    match processor.sums_8_bit_products_exactly:
        case True:
            return "--target cpu or cpu-vnni: this processor adds 8-bit products in 32 bits"
        case False:
            return "--target cpu, whose sums fit 16 bits: cpu-vnni files would saturate here (no VNNI) and are refused"
        case None:
            return "--target cpu, exact on every processor: whether cpu-vnni files are exact on this one cannot be read"


def find_problems(
    gpus: Gpus,
    libraries: Sequence[Library],
    versions: Mapping[str, str],
    processor: Processor,
    trials: Iterable[Trial],
) -> list[str]:
    """Lines of advice, the most serious first; empty where nothing is wrong.

    `libraries` compute on GPUs; `versions` are of all packages that matter, by name.
    """
    lines: list[str | None] = []
    if not any(trial.runs for trial in trials):
        lines.append(
            "no installed backend runs a model: pip install 'atss-toolkit[cpu]' (without training: pip install "
            "onnxruntime)"
        )
    if "onnxruntime" in versions and "onnxruntime-gpu" in versions:
        lines.append(
            "onnxruntime and onnxruntime-gpu share a module, and which one Python imports is chance: pip uninstall "
            f"onnxruntime onnxruntime-gpu, then {_wanted(gpus)}"
        )
    lines += _driver(gpus, libraries)
    lines += [line for gpu in gpus.gpus for line in _gpu(gpu, gpus.driver, libraries)]
    lines += _missing(gpus, libraries, versions)
    if processor.sums_8_bit_products_exactly is None:
        lines.append(
            "the processor's features cannot be read, so cpu-vnni files count as inexact here: use "
            "export.quantize --target cpu"
        )
    return [line for line in lines if line is not None]


def _driver(gpus: Gpus, libraries: Sequence[Library]) -> list[str | None]:
    # torch and cuda-python are built for CUDA on every machine. These packages are installed only for a GPU.
    for_gpus = [found for found in libraries if found.distribution.startswith(("onnxruntime-gpu", "tensorrt-cu"))]
    if gpus.driver is not None:
        unlisted = f"NVIDIA's driver is loaded, but its GPUs cannot be listed: {gpus.problem}" if gpus.problem else None
        return [unlisted, driver_problem(gpus.driver, libraries), cuda_mismatch(libraries, gpus.driver)]
    if for_gpus and gpus.driver_unknown:
        return [f"NVIDIA's driver cannot be checked: {gpus.problem}", cuda_mismatch(for_gpus)]
    if not for_gpus and not gpus.driver_failed:
        return []
    problem = driver_problem(None, for_gpus)
    if problem is None:
        return [f"{gpus.problem}: reinstall NVIDIA's driver, or restart the machine if the driver was just updated"]
    return [
        f"{problem} ({gpus.problem}); on a machine without an NVIDIA GPU: pip install 'atss-toolkit[cpu]' in place of "
        "onnxruntime-gpu",
        cuda_mismatch(for_gpus),
    ]


def _gpu(gpu: Gpu, driver: str | None, libraries: Sequence[Library]) -> list[str]:
    lines, named = [], f"GPU {gpu.index} ({gpu.name})"
    of_13 = [str(found) for found in libraries if (found.cuda or 0) >= 13]
    if gpu.compute_capability is not None and of_13:
        capability = tuple(int(part) for part in gpu.compute_capability.split("."))
        if capability < MIN_CAPABILITY_13:
            lines.append(
                f"{named} has compute capability {gpu.compute_capability}, CUDA 13 ({', '.join(of_13)}) needs 7.5 or "
                f"more: {install_command(12)}"
            )
    if gpu.memory_free_mb is not None and gpu.memory_free_mb < MIN_FREE_MB:
        lines.append(
            f"{named} has {gpu.memory_free_mb:.0f} of {gpu.memory_total_mb or 0:.0f} MiB free, CUDA alone takes "
            "about 500: end what runs there (nvidia-smi lists it), or use another GPU (--device N)"
        )
    return lines


def _missing(gpus: Gpus, libraries: Sequence[Library], versions: Mapping[str, str]) -> list[str | None]:
    """Packages that a machine with a GPU lacks."""
    if not gpus.gpus:
        return []
    lines: list[str | None] = []
    installed = {found.distribution for found in libraries}
    if not any(name.startswith(("onnxruntime-gpu", "tensorrt-")) for name in installed):
        first = "pip uninstall onnxruntime, then " if "onnxruntime" in versions else ""
        lines.append(f"there is a GPU, but nothing that runs models on it: {first}{_wanted(gpus)}")
    torch = next((found for found in libraries if found.distribution == "torch"), None)
    if torch is not None and torch.cuda is None:
        lines.append(f"{torch} is a build without CUDA, so it trains on the CPU: pip uninstall torch, {_wanted(gpus)}")
    return lines


def _wanted(gpus: Gpus) -> str:
    """The command that installs the newest libraries that this machine's driver supports."""
    if not gpus.gpus:
        return "pip install 'atss-toolkit[cpu]'"
    fits = [major for major in EXTRAS if gpus.driver is None or driver_fits(gpus.driver, major)]
    return install_command(max(fits)) if fits else "update NVIDIA's driver"
