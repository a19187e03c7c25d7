"""What this machine's processor can do, as the system reports it: above all whether its 8-bit kernels are exact.

The product of an 8-bit activation and an 8-bit weight has 16 bits. Processors with VNNI (x86) or the dot product (ARM)
add four such products in 32 bits. Processors without them add two in 16 bits and saturate at 32767 (`vpmaddubsw`).
"""

from __future__ import annotations

import os
import platform
import subprocess
from dataclasses import dataclass
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")  # on Linux
_X86 = ("x86_64", "amd64", "i386", "i686")
_ARM = ("aarch64", "arm64")
# Features as the system spells them: on Linux in /proc/cpuinfo, on macOS below hw.optional.
_EXACT = {"avx512_vnni", "avx_vnni", "asimddp", "arm.feat_dotprod"}
_SHOWN = {
    "AVX2": {"avx2"},
    "AVX-512": {"avx512f"},
    "VNNI": {"avx512_vnni", "avx_vnni"},
    "BF16": {"avx512_bf16", "bf16", "arm.feat_bf16"},
    "AMX int8": {"amx_int8"},
    "NEON": {"asimd", "arm.advsimd"},
    "dot product": {"asimddp", "arm.feat_dotprod"},
    "int8 matrix product": {"i8mm", "arm.feat_i8mm"},
}


@dataclass(frozen=True)
class Processor:
    """A processor's name and features."""

    architecture: str  # as in `platform.machine()`
    name: str | None  # shown to people; nothing depends on it
    features: frozenset[str]  # as the system spells them, in lower case; empty: unknown

    @property
    def sums_8_bit_products_exactly(self) -> bool | None:
        """Whether 8-bit kernels add products in 32 bits on this processor; None where its features are unknown."""
        if not self.features or self.architecture.lower() not in (*_X86, *_ARM):
            return None
        return bool(self.features & _EXACT)

    @property
    def abilities(self) -> tuple[str, ...]:
        """The features that matter for detectors, by their common names."""
        return tuple(shown for shown, features in _SHOWN.items() if features & self.features)

    def __str__(self) -> str:
        known = ", ".join(self.abilities) if self.features else "features unknown"
        return f"{self.name or self.architecture} ({known or 'none of the features that matter here'})"


def read_processor() -> Processor:
    """This machine's processor; without features where the system doesn't report them, as on Windows."""
    name, features = (_from_sysctl if platform.system() == "Darwin" else _from_cpuinfo)()
    return Processor(platform.machine(), name or platform.processor() or None, features)


def _from_cpuinfo() -> tuple[str | None, frozenset[str]]:
    """Name and features on Linux; of several processors, the features that all of them have."""
    try:
        lines = CPUINFO.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None, frozenset()
    name, common = None, None
    for line in lines:
        key, _, value = (part.strip() for part in line.partition(":"))
        if key in ("model name", "Model"):  # x86, and some ARM boards
            name = name or value
        elif key in ("flags", "Features"):  # x86, ARM: one line per core, and cores may differ
            features = frozenset(value.lower().split())
            common = features if common is None else common & features
    return name, common or frozenset()


def _from_sysctl() -> tuple[str | None, frozenset[str]]:
    """Name and features on macOS."""
    try:
        text = subprocess.run(
            ["sysctl", "machdep.cpu", "hw.optional"], capture_output=True, text=True, timeout=10
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return None, frozenset()
    name, features = None, set[str]()
    for line in text.splitlines():
        key, _, value = (part.strip() for part in line.partition(":"))
        if key == "machdep.cpu.brand_string":
            name = value
        elif key.startswith("machdep.cpu.") and key.endswith("features"):  # an Intel Mac's list
            features.update(value.lower().split())
        elif key.startswith("hw.optional.") and value == "1":
            features.add(key.removeprefix("hw.optional.").lower())
    return name, frozenset(features)


def processors() -> int:
    """Number of processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
