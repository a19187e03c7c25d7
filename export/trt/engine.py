"""Builds the engine of an exported file and writes it with its description, or says in one line why not."""

from __future__ import annotations

import dataclasses
import hashlib
import shlex
import shutil
import sys
from pathlib import Path

from runtime.backends.engine_file import EngineManifest, this_platform, write_engine
from runtime.command_names import QUANTIZE, TO_TRT
from runtime.files import atomic_write, require_writable
from runtime.manifest import Manifest

from ..onnx_model.network import parse_deployed, read_deployed
from ..onnx_model.precision import count_convolutions, count_wrong_convolutions, format_counts
from .build import BuildResult, ParseError, build
from .inspector import precision_problem
from .library import Library
from .profiles import describe_profile, profile_options
from .settings import BuildError, Settings, check_settings

_ROOM = 256 << 20  # bytes: an engine holds compiled kernels besides the weights


@dataclasses.dataclass(frozen=True)
class Source:
    """An exported file as it was read, once: another one may have its name by the time that the engine is built."""

    path: Path
    content: bytes
    manifest: Manifest


def load_source(path: Path) -> Source:
    """A file that an engine can be built of. Raises ModelError, ManifestError, BuildError.

    A file that says one precision and has another is refused: the engine would repeat the claim.
    """
    content = read_deployed(path)
    model, manifest = parse_deployed(content, path)
    if count_convolutions(model)["uint8"]:
        raise BuildError(
            f"{path}: its int8 is for CPUs (asymmetric activations), which TensorRT lacks; convert the float32 "
            f"file for it: {QUANTIZE} MODEL.onnx --precision int8 --target tensorrt --images DIR"
        )
    if count_wrong_convolutions(model, manifest.precision):
        counts = format_counts(count_convolutions(model))
        raise BuildError(
            f"{path} says that it is {manifest.precision}, but its convolutions are: {counts}; "
            f"make it again: {QUANTIZE} MODEL.onnx --precision {manifest.precision}"
        )
    return Source(path, content, manifest)


def build_engine(
    library: Library, source: Source, settings: Settings, out: Path, show_progress: bool = False
) -> EngineManifest:
    """Build an engine of an exported file and write it with its description; print both.

    Nothing takes the name `out` before it is whole. Raises UserError.
    """
    precision = source.manifest.precision
    check_settings(library, settings, precision)
    require_free_space(out, len(source.content))
    if settings.timing_cache is not None:
        require_writable(settings.timing_cache)
    gpus = ", ".join(settings.compute_capabilities) or (library.device.name if library.device else "this machine")
    print(f"building {source.path.name} ({precision}) with {library.name} {library.version} for {gpus}", flush=True)
    for number, profile in enumerate(settings.profiles):
        print(f"  profile {number}: {describe_profile(profile)}", flush=True)
    try:
        built = build(library, source.path, source.content, settings, show_progress)
    except ParseError as error:
        for line in error.nodes:
            print(line, file=sys.stderr)
        raise
    for line in built.warnings:
        print(f"TensorRT warns: {line}", file=sys.stderr)
    if problem := precision_problem(built.layers, precision):
        raise BuildError(
            f"{out}: NOT written, it isn't the {precision} engine that was asked for: {problem}; "
            f"please report it with the version, {library.name} {library.version}"
        )
    if not built.layers and library.flavor == "tensorrt":  # it was built on its GPU, where they can be told
        print(
            f"warning: {library.name} {library.version} doesn't tell the precision of its layers, so nobody checked "
            f"that they are {precision}; compare speeds with another precision's: python -m runtime.benchmark",
            file=sys.stderr,
        )
    described = describe_engine(library, source, settings, built, out)
    write_engine(out, built.data, described)
    if settings.timing_cache is not None:
        atomic_write(settings.timing_cache, built.timing_cache)
    layers = f"convolutions: {format_counts(built.layers)}" if built.layers else _UNREAD
    print(
        f"{out}  {len(built.data) / 1e6:.1f} MB in {built.seconds:.1f} s, for compute capability "
        f"{', '.join(built.compute_capabilities)}; {layers}"
    )
    return described


_UNREAD = "its layers' precisions could not be read (that needs the GPU that it is for)"


def describe_engine(
    library: Library, source: Source, settings: Settings, built: BuildResult, out: Path
) -> EngineManifest:
    """What lies beside the engine."""
    return EngineManifest(
        manifest=source.manifest,
        flavor=library.flavor,
        library_version=library.version,
        compute_capabilities=built.compute_capabilities,
        platform=this_platform(),
        engine_sha256=hashlib.sha256(built.data).hexdigest(),
        onnx_sha256=hashlib.sha256(source.content).hexdigest(),
        profiles=settings.profiles,
        tensors=built.tensors,
        rebuild=rebuild_command(library, source.path, settings, out),
        layers=built.layers,
        version_compatible=settings.version_compatible,
    )


def rebuild_command(library: Library, source: Path, settings: Settings, out: Path) -> str:
    """The command that builds this engine again, from its folder."""
    words = [f"{TO_TRT} {shlex.quote(source.name)} -o {shlex.quote(out.name)} --flavor {library.flavor}"]
    if settings.compute_capabilities:
        words.append(f"--compute-capability {' '.join(settings.compute_capabilities)}")
    words.append(profile_options(settings.profiles))
    if settings.workspace_bytes is not None:
        words.append(f"--workspace {settings.workspace_bytes / (1 << 30):g}")
    if settings.optimization_level is not None:
        words.append(f"--optimization-level {settings.optimization_level}")
    if settings.hardware_compatibility != "none":
        words.append(f"--hardware-compatibility {settings.hardware_compatibility}")
    if settings.version_compatible:
        words.append("--version-compatible")
    return " ".join(words)


def require_free_space(out: Path, onnx_bytes: int) -> None:
    """Raise UserError before a build of minutes where its result couldn't be written."""
    require_writable(out)
    needed = onnx_bytes * 2 + _ROOM
    free = shutil.disk_usage(out.resolve().parent).free
    if free < needed:
        raise BuildError(
            f"{out}: {free / 1e6:,.0f} MB are free there, the engine may need {needed / 1e6:,.0f}; free some space or "
            "name another folder with -o"
        )
