"""From an exported file to an engine with its description beside it. The bytes are built in `build.py`."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import shlex
import shutil
from pathlib import Path

from runtime.backends.engine_file import EngineManifest, this_platform, write_engine
from runtime.command_names import QUANTIZE, TO_TRT
from runtime.files import atomic_write, require_writable
from runtime.manifest import Manifest

from ..onnx_model.forms import for_processor
from ..onnx_model.network import parse_deployed, read_deployed
from ..onnx_model.precision import count_convolutions, count_wrong_convolutions, format_counts
from .build import BuildResult, ParseError, build
from .inspector import precision_problem
from .library import Library
from .profiles import describe_profile, profile_options
from .settings import BuildError, Settings, check_settings

_KERNEL_SPACE = 256 << 20  # bytes: an engine holds compiled kernels besides the weights

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class EngineSource:
    """An exported file as it was read once: by the time that the engine is built, another file may have its name."""

    path: Path
    sha256: str
    graph: bytes  # in the form for GPUs
    manifest: Manifest


def load_source(path: Path) -> EngineSource:
    """Read a file that an engine can be built from. Raises ModelError, ManifestError, BuildError.

    A file whose manifest says one precision and whose convolutions have another is refused, because the engine's
    description would repeat the claim.
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
    if manifest.interface == "toolkit":  # the others have the form for GPUs already
        model = for_processor(model, manifest.thresholds, "gpu")
    graph = model.SerializeToString(deterministic=True)
    return EngineSource(path, hashlib.sha256(content).hexdigest(), graph, manifest)


def build_engine_file(
    library: Library, source: EngineSource, settings: Settings, out: Path, show_progress: bool = False
) -> EngineManifest:
    """Build an engine of an exported file, and write it to `out` with its description beside it.

    Nothing is written where the build fails, or where the engine's convolutions don't have the file's precision.
    Logs what is built and what came out. Raises BuildError, ParseError, WriteError.
    """
    precision = source.manifest.precision
    check_settings(library, settings, precision)
    require_free_space(out, len(source.graph))
    if settings.timing_cache is not None:
        require_writable(settings.timing_cache)
    gpus = ", ".join(settings.compute_capabilities) or (library.device.name if library.device else "this machine")
    logger.info(f"building {source.path.name} ({precision}) with {library.name} {library.version} for {gpus}")
    for number, profile in enumerate(settings.profiles):
        logger.info(f"  profile {number}: {describe_profile(profile)}")
    try:
        built = build(library, source.path, source.graph, settings, show_progress)
    except ParseError as error:
        for line in error.nodes:
            logger.error(line)
        raise
    for line in built.warnings:
        logger.warning(f"TensorRT warns: {line}")
    if problem := precision_problem(built.layers, precision):
        raise BuildError(
            f"{out}: NOT written, it isn't the {precision} engine that was asked for: {problem}; "
            f"please report it with the version, {library.name} {library.version}"
        )
    if not built.layers and library.flavor == "tensorrt":  # it was built on its GPU, where they can be told
        logger.warning(
            f"warning: {library.name} {library.version} doesn't tell the precision of its layers, so nobody checked "
            f"that they are {precision}; compare speeds with another precision's: python -m runtime.benchmark"
        )
    described = describe_engine(library, source, settings, built, out)
    write_engine(out, built.data, described)
    if settings.timing_cache is not None:
        atomic_write(settings.timing_cache, built.timing_cache)
    layers = f"convolutions: {format_counts(built.layers)}" if built.layers else _UNREAD
    logger.info(
        f"{out}  {len(built.data) / 1e6:.1f} MB in {built.seconds:.1f} s, for compute capability "
        f"{', '.join(built.compute_capabilities)}; {layers}"
    )
    return described


_UNREAD = "the precision of its layers could not be read (that needs the GPU that it is for)"


def describe_engine(
    library: Library, source: EngineSource, settings: Settings, built: BuildResult, out: Path
) -> EngineManifest:
    """The description of an engine: origin, hashes, versions, profiles, tensors, and how to build it again."""
    return EngineManifest(
        manifest=source.manifest,
        flavor=library.flavor,
        library_version=library.version,
        compute_capabilities=built.compute_capabilities,
        platform=this_platform(),
        engine_sha256=hashlib.sha256(built.data).hexdigest(),
        onnx_sha256=source.sha256,
        profiles=settings.profiles,
        tensors=built.tensors,
        rebuild=rebuild_command(library, source.path, settings, out),
        layers=built.layers,
        version_compatible=settings.version_compatible,
    )


def rebuild_command(library: Library, source: Path, settings: Settings, out: Path) -> str:
    """The command that builds this engine again, to be run in its folder."""
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
    """Raise WriteError or BuildError where the engine couldn't be written after a build of minutes."""
    require_writable(out)
    needed = onnx_bytes * 2 + _KERNEL_SPACE
    free = shutil.disk_usage(out.resolve().parent).free
    if free < needed:
        raise BuildError(
            f"{out}: {free / 1e6:,.0f} MB are free there, the engine may need {needed / 1e6:,.0f}; free some space or "
            "name another folder with -o"
        )
