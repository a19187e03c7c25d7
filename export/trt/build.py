"""From the bytes of an ONNX file to the bytes of an engine, with TensorRT 10.12+, 11 or TensorRT for RTX.

Networks are strongly typed: the engine has the types of the graph, and no flag changes a precision. Every TensorRT name
used here exists in all three libraries, or is in a branch for the flavor that has it (tests/test_tensorrt_names.py).
"""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any, Literal

from runtime.backends.engine_file import Profile, Tensor
from runtime.names import unknown_name

from .inspector import count_precisions
from .library import Library
from .profiles import describe_profile
from .progress import Phases, interruptible, make_logger, make_monitor
from .settings import AMPERE_AND_LATER, BuildError, HardwareCompatibility, Settings

_still_called: list[Any] = []  # what threads of stopped builds may still call; kept until the process ends


class ParseError(BuildError):
    """A graph with nodes that TensorRT can't parse; `nodes` has a line for each."""

    def __init__(self, message: str, nodes: tuple[str, ...]) -> None:
        super().__init__(message)
        self.nodes = nodes


@dataclasses.dataclass(frozen=True)
class BuildResult:
    """The bytes of an engine, and what was learned while it was built."""

    data: bytes
    tensors: tuple[Tensor, ...]
    compute_capabilities: tuple[str, ...]
    layers: dict[str, int]  # convolutions by precision; empty where the engine couldn't be inspected
    timing_cache: bytes  # for the next build; empty where none was asked for
    warnings: tuple[str, ...]
    seconds: float


def build(library: Library, source: Path, model: bytes, settings: Settings, show_progress: bool = False) -> BuildResult:
    """Build an engine of the ONNX bytes `model`, with settings that passed `check_settings`. Ctrl-C stops the build.

    `source` names the file in messages. Raises BuildError, ParseError where nodes can't be parsed, KeyboardInterrupt.
    """
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


def _build(library: Library, source: Path, model: bytes, settings: Settings, phases: Phases) -> BuildResult | None:
    """Returns None where the build was stopped: an exception would keep the library's objects alive, in no order."""
    trt, started = library.trt, time.perf_counter()
    errors: list[str] = []
    warnings: list[str] = []
    logger = make_logger(trt, errors, warnings)
    try:
        builder = trt.Builder(logger)
    except TypeError as error:  # the binding raises it where the library returned null
        raise BuildError(f"{library.name} {library.version} does not start: {_last(errors, error)}") from error
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    _parse(library, logger, network, source, model, errors)
    tensors = _tensors(trt, network)
    builder_config = builder.create_builder_config()
    builder_config.clear_flag(
        trt.BuilderFlag.TF32
    )  # it is on by default and leaves float32 convolutions 10 bits of mantissa
    for profile in settings.profiles:
        if builder_config.add_optimization_profile(_make_profile(builder, profile, tensors)) < 0:
            raise BuildError(
                f"{source}: {library.name} {library.version} does not take the profile {describe_profile(profile)}: "
                f"{_all(errors)}"
            )
    builder_config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # otherwise the inspector knows no types
    monitor = make_monitor(trt, phases)
    builder_config.progress_monitor = monitor
    if settings.workspace_bytes is not None:
        builder_config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, settings.workspace_bytes)
    if settings.optimization_level is not None:
        builder_config.builder_optimization_level = settings.optimization_level
    if library.flavor == "rtx":
        capabilities = _name_gpus_rtx(trt, builder_config, library, settings, errors)
        timing_cache = None
    else:
        capabilities = _compatibility(trt, builder_config, library, settings)
        timing_cache = _use_timing_cache(builder_config, settings.timing_cache)
    host_memory = builder.build_serialized_network(network, builder_config)
    if host_memory is None:
        if phases.is_cancelled:
            _still_called.append((logger, monitor))
            return None
        raise BuildError(
            f"{source}: {library.name} {library.version} cannot build it for {', '.join(capabilities)}: "
            f"{_last(errors, 'it gives no reason')}"
        )
    measured = bytes(timing_cache.serialize()) if timing_cache is not None else b""
    data = bytes(host_memory)
    layers = {}
    if library.device is not None and library.device.compute_capability in capabilities:
        layers = count_precisions(trt, logger, errors, data, settings.version_compatible)
    return BuildResult(data, tensors, capabilities, layers, measured, tuple(warnings), time.perf_counter() - started)


def _parse(library: Library, logger: Any, network: Any, source: Path, model: bytes, errors: list[str]) -> None:
    trt = library.trt
    onnx_parser = trt.OnnxParser(network, logger)
    if onnx_parser.parse(model, str(source)):
        return
    nodes = []
    for index in range(onnx_parser.num_errors):
        parser_error = onnx_parser.get_error(index)
        where = f"node {parser_error.node()} ({parser_error.node_operator()} {parser_error.node_name()!r})"
        nodes.append(f"{where}: {parser_error.code().name}: {' '.join(parser_error.desc().split())}")
    raise ParseError(
        f"{source}: {library.name} {library.version} cannot parse {len(nodes)} of its nodes, the first: "
        f"{nodes[0] if nodes else _last(errors, 'it names none')}; export the checkpoint again with this toolkit",
        tuple(nodes),
    )


def _tensors(trt: Any, network: Any) -> tuple[Tensor, ...]:
    inputs = [_tensor(trt, "input", network.get_input(index)) for index in range(network.num_inputs)]
    return (*inputs, *(_tensor(trt, "output", network.get_output(index)) for index in range(network.num_outputs)))


def _tensor(trt: Any, kind: Literal["input", "output"], trt_tensor: Any) -> Tensor:
    return Tensor(trt_tensor.name, kind, trt.nptype(trt_tensor.dtype).__name__, tuple(trt_tensor.shape))


def _make_profile(builder: Any, profile: Profile, tensors: tuple[Tensor, ...]) -> Any:
    """The profile of a graph that takes uint8 [B, H, W, 3] and sizes, or of DeepStream's, which takes [B, 3, H, W]."""
    optimization_profile = builder.create_optimization_profile()
    least, best, most = profile.least, profile.best, profile.most
    if any(tensor.name == "image_sizes" for tensor in tensors):
        optimization_profile.set_shape("images", (*least, 3), (*best, 3), (*most, 3))
        optimization_profile.set_shape("image_sizes", (least[0], 2), (best[0], 2), (most[0], 2))
    else:
        planar = [(batch, 3, height, width) for batch, height, width in (least, best, most)]
        optimization_profile.set_shape("images", planar[0], planar[1], planar[2])
    return optimization_profile


def _name_gpus_rtx(
    trt: Any, builder_config: Any, library: Library, settings: Settings, errors: list[str]
) -> tuple[str, ...]:
    """Set the GPUs that the engine is for. Returns their compute capabilities."""
    capabilities = settings.compute_capabilities
    if capabilities:
        members = [trt.ComputeCapability.__members__[f"SM{capability.replace('.', '')}"] for capability in capabilities]
    else:
        if library.device is None:
            raise BuildError(
                "--compute-capability: there is no GPU here to build for; name the GPUs that will run the engine"
            )
        capabilities, members = (library.device.compute_capability,), [trt.ComputeCapability.CURRENT]
    builder_config.num_compute_capabilities = len(members)
    for index, (capability, member) in enumerate(zip(capabilities, members, strict=True)):
        if not builder_config.set_compute_capability(member, index):
            raise BuildError(
                f"{library.name} {library.version} does not build for compute capability {capability}: {_all(errors)}"
            )
    return capabilities


def _compatibility(trt: Any, builder_config: Any, library: Library, settings: Settings) -> tuple[str, ...]:
    """Set the other GPUs and versions that may run the engine. Returns the compute capabilities that it is for."""
    if settings.version_compatible:
        builder_config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    own = (library.device.compute_capability,) if library.device is not None else ()
    match settings.hardware_compatibility:
        case "none":
            return own
        case "ampere-plus":
            builder_config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
            return AMPERE_AND_LATER
        case "same-compute-capability":
            builder_config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.SAME_COMPUTE_CAPABILITY
            return own
        case _:
            unknown_name(settings.hardware_compatibility, "--hardware-compatibility", HardwareCompatibility)


def _use_timing_cache(builder_config: Any, path: Path | None) -> Any:
    """Load the timing cache: measurements of earlier builds on this GPU. Returns None where no file was named."""
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


def _all(errors: list[str]) -> str:
    """Each error once: without a GPU, a call that is refused logs the missing driver after its reason."""
    return "; ".join(dict.fromkeys(errors))[:500] or "it gives no reason"
