"""Settings of a build, checked against the flavor of TensorRT and the GPUs: not every GPU has every type."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from runtime.backends.engine_file import SUFFIXES, Profile
from runtime.errors import UserError
from runtime.manifest import Precision

from .library import Library

# Those that TensorRT for RTX 1.7 builds for; "7.5" is Turing, "12.0" is GeForce with Blackwell.
RTX_CAPABILITIES = ("7.5", "8.0", "8.6", "8.9", "12.0", "12.1")
# Those that an engine for "Ampere and later" runs on.
AMPERE_AND_LATER = ("8.0", "8.6", "8.7", "8.9", "9.0", "10.0", "10.3", "11.0", "12.0", "12.1")
# The first compute capability whose tensor cores have a type; TensorRT for RTX refuses earlier ones.
FIRST_CAPABILITY: dict[Precision, str] = {"bf16": "8.0", "fp8": "8.9"}
HardwareCompatibility = Literal["none", "ampere-plus", "same-compute-capability"]


class BuildError(UserError):
    """A graph that TensorRT can't build, or settings that it doesn't have."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """Settings of a build. A setting that the flavor lacks must have its default (`check_settings`)."""

    profiles: tuple[Profile, ...]
    compute_capabilities: tuple[str, ...] = ()  # TensorRT for RTX: GPUs to build for; empty: the GPU here
    workspace_bytes: int | None = None  # most scratch memory of a layer; None: the device's memory
    optimization_level: int | None = None  # 0–5; None: the library's
    timing_cache: Path | None = None  # read if it exists, and written after the engine
    hardware_compatibility: HardwareCompatibility = "none"
    version_compatible: bool = False


def check_settings(library: Library, settings: Settings, precision: Precision) -> None:
    """Raise BuildError for settings that the flavor lacks, and for GPUs that lack the precision's type."""
    if library.flavor == "rtx":
        lacking = {
            "--timing-cache": settings.timing_cache is not None,
            "--hardware-compatibility": settings.hardware_compatibility != "none",
            "--version-compatible": settings.version_compatible,
        }
        if asked := [option for option, given in lacking.items() if given]:
            raise BuildError(
                f"{', '.join(asked)}: TensorRT for RTX has no such option (it compiles kernels on the GPU that runs "
                "them); leave it out, or build a standard engine: --flavor tensorrt"
            )
        if unknown := [c for c in settings.compute_capabilities if c not in RTX_CAPABILITIES]:
            raise BuildError(
                f"--compute-capability {' '.join(unknown)}: TensorRT for RTX builds for {', '.join(RTX_CAPABILITIES)}; "
                "for other GPUs build a standard engine on them: --flavor tensorrt"
            )
    if settings.optimization_level is not None and not 0 <= settings.optimization_level <= 5:
        raise BuildError(f"--optimization-level {settings.optimization_level}: expected 0 to 5")
    first = FIRST_CAPABILITY.get(precision, "0.0")
    if early := [c for c in settings.compute_capabilities if _number(c) < _number(first)]:
        raise BuildError(
            f"--compute-capability {' '.join(early)}: {precision} needs {first} or later; leave the earlier ones "
            "out, or build the fp16 file for them"
        )


def default_capabilities(library: Library, precision: Precision) -> tuple[str, ...]:
    """The GPUs to build for by default. Without a GPU: all that TensorRT for RTX builds this precision for.

    With a GPU, or for a standard engine: none named, which means the GPU here.
    """
    if library.flavor != "rtx" or library.device is not None:
        return ()
    return tuple(c for c in RTX_CAPABILITIES if _number(c) >= _number(FIRST_CAPABILITY.get(precision, "0.0")))


def _number(capability: str) -> tuple[int, ...]:
    return tuple(int(part) for part in capability.split("."))


def engine_paths(default: Path, out: Path | None, separate: Sequence[str]) -> list[tuple[Path, tuple[str, ...]]]:
    """The engines to write, each with the compute capabilities that it alone is for (empty: all that were named).

    One engine at `out`, or at `default` with the suffix .engine; with `separate` one for each of these compute
    capabilities: OUT.sm86.engine, …. Raises BuildError for a name that no runtime takes for an engine's.
    """
    out = out or default.with_name(default.name + SUFFIXES[0])
    if out.suffix not in SUFFIXES:
        raise BuildError(f"-o {out}: expected a name that ends in {', '.join(SUFFIXES)}")
    if out.is_dir():
        raise BuildError(f"-o {out}: that is a folder; give the file's name as well")
    if not separate:
        return [(out, ())]
    return [(out.with_name(f"{out.stem}.sm{c.replace('.', '')}{out.suffix}"), (c,)) for c in separate]
