"""An ONNX file of this toolkit becomes the bytes of an engine, in TensorRT 10.12+, 11 or TensorRT for RTX.

Networks are strongly typed: the types in the graph are the engine's, and no flag changes a precision. Every name of
TensorRT's here is in all three, or in a branch for the flavor that has it (tests/test_tensorrt_names.py).
"""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any, Literal

from runtime.engine_file import Profile, Tensor
from runtime.errors import UserError
from runtime.files import atomic_write

from .trt_inspect import count_precisions
from .trt_library import Library
from .trt_progress import Phases, interruptible, make_logger, make_monitor

# TensorRT for RTX 1.7 builds for these; "7.5" is Turing, "12.0" Blackwell's GeForce.
RTX_CAPABILITIES = ("7.5", "8.0", "8.6", "8.9", "12.0", "12.1")
# What an engine built for "Ampere and later" runs on.
AMPERE_AND_LATER = ("8.0", "8.6", "8.7", "8.9", "9.0", "10.0", "10.3", "11.0", "12.0", "12.1")
HardwareCompatibility = Literal["none", "ampere-plus", "same-compute-capability"]


class BuildError(UserError):
    """A graph that TensorRT doesn't take, or settings that it can't fulfil."""


class ParseError(BuildError):
    """A graph with nodes that TensorRT doesn't take; `nodes` has a line for each."""

    def __init__(self, message: str, nodes: tuple[str, ...]) -> None:
        super().__init__(message)
        self.nodes = nodes


@dataclasses.dataclass(frozen=True)
class Settings:
    """How to build. What a flavor lacks must be left at its default (`check_settings`)."""

    profiles: tuple[Profile, ...]
    compute_capabilities: tuple[str, ...] = ()  # RTX: the GPUs to build for; empty: the one here
    workspace_bytes: int | None = None  # the most scratch memory of a layer; None: the whole device
    optimization_level: int | None = None  # 0–5; None: the library's
    timing_cache: Path | None = None  # read if it exists, written after the build
    hardware_compatibility: HardwareCompatibility = "none"
    version_compatible: bool = False


@dataclasses.dataclass(frozen=True)
class Built:
    data: bytes
    tensors: tuple[Tensor, ...]
    compute_capabilities: tuple[str, ...]
    layers: dict[str, int]  # convolutions by precision; empty where the engine couldn't be inspected
    warnings: tuple[str, ...]
    seconds: float


def check_settings(library: Library, settings: Settings) -> None:
    """Raise BuildError for settings that the flavor doesn't have."""
    if library.flavor == "rtx":
        lacking = {
            "--timing-cache": settings.timing_cache is not None,
            "--hardware-compatibility": settings.hardware_compatibility != "none",
            "--version-compatible": settings.version_compatible,
        }
        if asked := [option for option, given in lacking.items() if given]:
            raise BuildError(
                f"{', '.join(asked)}: TensorRT for RTX has no such thing (it compiles kernels on the GPU that runs "
                "them); leave it out, or build a standard engine: --flavor tensorrt"
            )
        if unknown := [c for c in settings.compute_capabilities if c not in RTX_CAPABILITIES]:
            raise BuildError(
                f"--compute-capability {' '.join(unknown)}: TensorRT for RTX builds for {', '.join(RTX_CAPABILITIES)}; "
                "for other GPUs build a standard engine on them: --flavor tensorrt"
            )
        if not settings.compute_capabilities and library.device is None:
            raise BuildError("--compute-capability: there is no GPU here to build for; name those that will run it")
    if settings.optimization_level is not None and not 0 <= settings.optimization_level <= 5:
        raise BuildError(f"--optimization-level {settings.optimization_level}: expected 0 to 5")


def build(library: Library, source: Path, model: bytes, settings: Settings, show_progress: bool = False) -> Built:
    """Build an engine of the ONNX bytes `model`; `source` is their file's name in messages. Ctrl-C stops it.

    Raises BuildError; ParseError where nodes can't be parsed.
    """
    check_settings(library, settings)
    phases = Phases(show_progress)

    def cancel() -> None:
        phases.is_cancelled = True

    try:
        built = interruptible(lambda: _build(library, source, model, settings, phases), cancel)
    finally:
        phases.close()
    if built is None:
        raise KeyboardInterrupt
    return built


def _build(library: Library, source: Path, model: bytes, settings: Settings, phases: Phases) -> Built | None:
    """None where it was stopped: an exception would keep the library's objects alive, in no order."""
    trt, started = library.trt, time.perf_counter()
    errors: list[str] = []
    warnings: list[str] = []
    logger = make_logger(trt, errors, warnings)
    try:
        builder = trt.Builder(logger)
    except TypeError as error:  # the binding's word for "returned null"
        raise BuildError(f"{library.name} {library.version} does not start: {_last(errors, error)}") from error
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    _parse(trt, logger, network, source, model, errors)
    tensors = _tensors(trt, network)
    builder_config = builder.create_builder_config()
    for profile in settings.profiles:
        builder_config.add_optimization_profile(_make_profile(builder, profile))
    builder_config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # or the inspector knows no types
    monitor = make_monitor(trt, phases)
    builder_config.progress_monitor = monitor
    if settings.workspace_bytes is not None:
        builder_config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, settings.workspace_bytes)
    if settings.optimization_level is not None:
        builder_config.builder_optimization_level = settings.optimization_level
    if library.flavor == "rtx":
        capabilities = _name_gpus_rtx(trt, builder_config, library, settings)
        timing_cache = None
    else:
        capabilities = _compatibility(trt, builder_config, library, settings)
        timing_cache = _use_timing_cache(builder_config, settings.timing_cache)
    host_memory = builder.build_serialized_network(network, builder_config)
    if host_memory is None:
        if phases.is_cancelled:
            return None
        raise BuildError(
            f"{source}: {library.name} {library.version} cannot build it for {', '.join(capabilities)}: "
            f"{_last(errors, 'it gives no reason')}"
        )
    if timing_cache is not None and settings.timing_cache is not None:
        atomic_write(settings.timing_cache, bytes(timing_cache.serialize()))
    data = bytes(host_memory)
    layers = count_precisions(trt, logger, data) if library.device is not None else {}
    return Built(data, tensors, capabilities, layers, tuple(warnings), time.perf_counter() - started)


def _parse(trt: Any, logger: Any, network: Any, source: Path, model: bytes, errors: list[str]) -> None:
    onnx_parser = trt.OnnxParser(network, logger)
    if onnx_parser.parse(model, str(source)):
        return
    nodes = []
    for index in range(onnx_parser.num_errors):
        parser_error = onnx_parser.get_error(index)
        where = f"node {parser_error.node()} ({parser_error.node_operator()} {parser_error.node_name()!r})"
        nodes.append(f"{where}: {parser_error.code().name}: {' '.join(parser_error.desc().split())}")
    raise ParseError(
        f"{source}: TensorRT {trt.__version__} cannot parse {len(nodes)} of its nodes, the first: "
        f"{nodes[0] if nodes else _last(errors, 'it names none')}; export the checkpoint again with this toolkit",
        tuple(nodes),
    )


def _tensors(trt: Any, network: Any) -> tuple[Tensor, ...]:
    inputs = [_tensor(trt, "input", network.get_input(index)) for index in range(network.num_inputs)]
    return (*inputs, *(_tensor(trt, "output", network.get_output(index)) for index in range(network.num_outputs)))


def _tensor(trt: Any, kind: Literal["input", "output"], trt_tensor: Any) -> Tensor:
    return Tensor(trt_tensor.name, kind, trt.nptype(trt_tensor.dtype).__name__, tuple(trt_tensor.shape))


def _make_profile(builder: Any, profile: Profile) -> Any:
    optimization_profile = builder.create_optimization_profile()
    ranges = (profile.least, profile.best, profile.most)
    optimization_profile.set_shape("images", *((*shape, 3) for shape in ranges))
    optimization_profile.set_shape("image_sizes", *((batch, 2) for batch, _, _ in ranges))
    return optimization_profile


def _name_gpus_rtx(trt: Any, builder_config: Any, library: Library, settings: Settings) -> tuple[str, ...]:
    """Name the GPUs that the engine is for; their compute capabilities."""
    if not settings.compute_capabilities:
        assert library.device is not None  # check_settings
        builder_config.num_compute_capabilities = 1
        builder_config.set_compute_capability(trt.ComputeCapability.CURRENT, 0)
        return (library.device.compute_capability,)
    builder_config.num_compute_capabilities = len(settings.compute_capabilities)
    for index, capability in enumerate(settings.compute_capabilities):
        member = trt.ComputeCapability.__members__[f"SM{capability.replace('.', '')}"]
        builder_config.set_compute_capability(member, index)
    return settings.compute_capabilities


def _compatibility(trt: Any, builder_config: Any, library: Library, settings: Settings) -> tuple[str, ...]:
    """Let the engine run on more than the GPU and version that build it; the compute capabilities that it then has."""
    if settings.version_compatible:
        builder_config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    own = (library.device.compute_capability,) if library.device is not None else ()
    if settings.hardware_compatibility == "ampere-plus":
        builder_config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
        return AMPERE_AND_LATER
    if settings.hardware_compatibility == "same-compute-capability":
        builder_config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.SAME_COMPUTE_CAPABILITY
    return own


def _use_timing_cache(builder_config: Any, path: Path | None) -> Any:
    """Measurements of earlier builds on this GPU spare most of a build's time. None where no file was named."""
    if path is None:
        return None
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        content = b""
    timing_cache = builder_config.create_timing_cache(content)
    if timing_cache is None or not builder_config.set_timing_cache(timing_cache, False):
        raise BuildError(
            f"--timing-cache {path}: of another GPU or TensorRT version, or damaged; name another file or delete it"
        )
    return timing_cache


def _last(errors: list[str], otherwise: object) -> str:
    return (errors[-1] if errors else str(otherwise))[:500]
