"""The CUDA major that each installed library was built for, read from package metadata without importing anything.

All majors must agree: a library for CUDA 13 can use neither the libraries nor the driver of CUDA 12. The oldest drivers
are from NVIDIA's table "CUDA Toolkit 11.x, 12.x, and 13.x Driver Version Ranges" (CUDA compatibility).
"""

from __future__ import annotations

import platform
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata

MIN_DRIVER = {11: 450, 12: 525, 13: 580}  # the oldest driver by CUDA major
EXTRAS = {12: "cuda12", 13: "cuda13"}  # this toolkit's extras by CUDA major
# The libraries to look for, in the order in which they are shown. TensorRT's names end in the major.
_NAMES = ("onnxruntime-gpu", "torch", "tensorrt-cuN", "tensorrt-rtx-cuN", "cuda-python", "pycuda")
_NAMED_BY_MAJOR = {"cuda-python", "cuda-bindings", "cuda-toolkit"}  # their versions are CUDA's
# Packages whose version starts with the CUDA major, from 13 on. For CUDA 12 the name has it (nvidia-cublas-cu12).
_TELLING = {"cuda-toolkit", "cuda-bindings", "nvidia-cuda-runtime", "nvidia-cuda-nvrtc", "nvidia-cublas"}
_REQUIREMENT = re.compile(r"([A-Za-z0-9._-]+)\s*(?:\[[^\]]*\])?\s*\(?([^;)]*)\)?\s*(?:;(.*))?$")


@dataclass(frozen=True)
class Library:
    """An installed library that computes on NVIDIA GPUs."""

    distribution: str
    version: str
    cuda: int | None  # major; None: built without CUDA, or unknown

    def __str__(self) -> str:
        return f"{self.distribution} {self.version}"


def cuda_libraries() -> list[Library]:
    """The installed libraries that compute on NVIDIA GPUs."""
    installed = installed_distributions()
    found = []
    for wanted in _NAMES:
        pattern = re.compile(re.escape(wanted).replace("cuN", r"cu\d+") + "$")
        for name in sorted(name for name in installed if pattern.match(name)):
            found.append(Library(name, _version(installed[name]), cuda_major(name, installed[name])))
    return found


def installed_distributions() -> dict[str, metadata.Distribution]:
    """Every installed distribution by its normalised name; of several with one name, the one that Python imports."""
    found: dict[str, metadata.Distribution] = {}
    for distribution in metadata.distributions():
        name = distribution.metadata["Name"] if distribution.metadata is not None else None
        if name:  # an interrupted installation leaves folders without a name
            found.setdefault(_normalised(name), distribution)
    return found


def cuda_major(name: str, distribution: metadata.Distribution) -> int | None:
    """The CUDA major that a distribution's name, version or requirements imply; None where nothing implies one."""
    version = _version(distribution)
    if named := re.search(r"-cu(\d\d)$", name):
        return int(named[1])
    if name in _NAMED_BY_MAJOR:
        return _leading_number(version)
    if local := re.search(r"\+cu(\d\d)", version):  # wheels of PyTorch's own index: 2.9.0+cu128
        return int(local[1])
    if "+cpu" in version:
        return None
    for requirement in distribution.requires or []:
        parts = _REQUIREMENT.match(requirement)
        if parts is None:
            continue
        required, versions, marker = _normalised(parts[1]), parts[2], parts[3] or ""
        # A requirement for Linux alone says nothing about other systems: PyTorch's wheels for Windows have no CUDA.
        if "Linux" in marker and platform.system() != "Linux":
            continue
        if named := re.search(r"-cu(\d\d)$", required):
            return int(named[1])
        if required in _TELLING and (pinned := re.search(r"(?:==|~=|>=)\s*(\d+)", versions)):
            return int(pinned[1])
    return None


def cuda_mismatch(libraries: Sequence[Library], driver: str | None = None) -> str | None:
    """One line that says which libraries are built for different CUDA majors; None where all agree.

    The line ends with the command that installs everything for one major: the newest that `driver` supports.
    """
    majors = sorted({library.cuda for library in libraries if library.cuda is not None}, reverse=True)
    if len(majors) < 2:
        return None
    parts = [
        f"{', '.join(str(library) for library in libraries if library.cuda == major)} for CUDA {major}"
        for major in majors
    ]
    fitting = next((major for major in majors if driver is None or driver_fits(driver, major)), majors[-1])
    return f"libraries of different CUDA majors are installed ({'; '.join(parts)}): {install_command(fitting)}"


def driver_problem(driver: str | None, libraries: Sequence[Library]) -> str | None:
    """One line that says that the driver is missing or too old for a library; None where the driver suits all."""
    built = [library for library in libraries if library.cuda is not None]
    if not built:
        return None
    newest = max(library.cuda or 0 for library in built)
    named = ", ".join(str(library) for library in built if library.cuda == newest)
    least = MIN_DRIVER.get(newest)
    wanted = f"{least} or newer" if least else "the newest"
    if driver is None:
        return f"no NVIDIA driver was found, which {named} (CUDA {newest}) needs: install the driver, {wanted}"
    if driver_fits(driver, newest):
        return None
    older = max((major for major in EXTRAS if driver_fits(driver, major)), default=None)
    instead = f", or take the libraries of CUDA {older}, which it fits: {install_command(older)}" if older else ""
    return (
        f"NVIDIA's driver {driver} is too old for {named}, built for CUDA {newest}: update the driver to {wanted}"
        f"{instead}"
    )


def driver_fits(driver: str, cuda: int) -> bool:
    """Whether the driver is new enough for a CUDA major. A major that MIN_DRIVER lacks counts as supported."""
    number = _leading_number(driver)
    return number is None or number >= MIN_DRIVER.get(cuda, 0)


def install_command(cuda: int) -> str:
    """The command that installs everything for one CUDA major."""
    return f"pip install 'atss-toolkit[{EXTRAS.get(cuda, 'gpu')}]'"


def _version(distribution: metadata.Distribution) -> str:
    return str(distribution.metadata["Version"] or "?")


def _normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _leading_number(text: str) -> int | None:
    digits = re.match(r"\d+", text)
    return int(digits[0]) if digits else None
