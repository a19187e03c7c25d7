"""The configurations of the two models, as the protobuf messages that Triton itself parses."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from runtime.backends.engine_file import Profile, Tensor
from runtime.backends.options import OPTIONS_BY_BACKEND
from runtime.backends.triton import contract
from runtime.errors import UserError
from runtime.images.limit import MAX_MEGAPIXELS
from runtime.manifest import to_json

from ..arguments import MissingLibraryError
from .network import Network

Device = Literal["auto", "cpu", "gpu"]
Placement = Literal["triton", "inline"]

# NumPy's types by Triton's names, as far as graphs have them.
_TYPES = {"uint8": "TYPE_UINT8", "int32": "TYPE_INT32", "int64": "TYPE_INT64", "float16": "TYPE_FP16"}
_TYPES = {**_TYPES, "float32": "TYPE_FP32", "bfloat16": "TYPE_BF16", "bool": "TYPE_BOOL"}


@dataclasses.dataclass(frozen=True)
class ServingOptions:
    """How a model is served."""

    placement: Placement = "triton"  # the network as a model of Triton's own backend, or inside the model in front
    device: Device = "auto"  # of the network
    instances: int = 1  # of the network, on each device
    front_instances: int = 1  # processes that decode images
    batch_max: int | None = None  # largest batch that the server makes; None: the file's
    max_megapixels: float = MAX_MEGAPIXELS  # larger images are refused
    queue_delay_us: int = 2000  # how long the first image of a batch waits for others
    backend: str = "auto"  # inline: a name of BACKENDS


def import_messages() -> Any:
    """The protobuf messages of Triton's configurations. Raises MissingLibraryError where the client isn't installed."""
    try:
        from tritonclient.grpc import model_config_pb2 as messages
    except ImportError as error:
        raise MissingLibraryError(
            f"Triton's client is not installed ({error}); pip install '{contract.EXTRA}'"
        ) from error
    return messages


def front_config(name: str, network_name: str | None, network: Network, options: ServingOptions) -> Any:
    """The `ModelConfig` of the model in front: a Python model that takes an image a request.

    It runs the model `network_name`; None: the network's file, which lies beside it.
    """
    messages = import_messages()
    config = messages.ModelConfig(
        name=name, backend="python", max_batch_size=_batch_max(network, options), default_model_filename="model.py"
    )
    for tensor, spec in contract.INPUTS.items():
        # Images of a batch have sizes of their own, and a request has one of the two inputs.
        config.input.add(
            name=tensor,
            data_type=messages.DataType.Value(spec.data_type),
            dims=spec.dims,
            optional=True,
            allow_ragged_batch=True,
        )
    for tensor, spec in contract.OUTPUTS.items():
        config.output.add(name=tensor, data_type=messages.DataType.Value(spec.data_type), dims=spec.dims)
    config.dynamic_batching.max_queue_delay_microseconds = options.queue_delay_us
    group = config.instance_group.add(count=options.front_instances, kind=messages.ModelInstanceGroup.KIND_CPU)
    parameters = {contract.MANIFEST: to_json(network.manifest), contract.MAX_MEGAPIXELS: repr(options.max_megapixels)}
    if network_name is not None:
        parameters[contract.NETWORK] = network_name
    else:
        parameters |= {contract.MODEL_FILE: network.file_name, contract.BACKEND: options.backend}
        group.count, group.kind = options.instances, _kind(messages, network, options)
    _set_parameters(config, parameters)
    return config


def network_config(name: str, network: Network, options: ServingOptions) -> Any:
    """The `ModelConfig` of the network: ONNX Runtime's or TensorRT's backend runs the file. Raises UserError.

    Tensors are the graph's own. Where the graph's batch has any size, Triton adds it to the shapes; else it stands in
    them, and Triton makes no batches.
    """
    messages, engine = import_messages(), network.engine
    if engine is not None and engine.flavor == "rtx":
        raise UserError(
            f"{network.path}: Triton's TensorRT backend does not run engines of TensorRT for RTX; serve it with "
            "--network inline, or build one with --flavor tensorrt on the server's GPU"
        )
    batched = all(tensor.shape[0] == -1 for tensor in network.tensors)
    # The model in front fills a batch up to the graph's least.
    batch_max = max(_batch_max(network, options), network.manifest.inputs.batch_min) if batched else 0
    config = messages.ModelConfig(name=name, max_batch_size=batch_max)
    if engine is None:
        config.backend, config.default_model_filename = "onnxruntime", "model.onnx"
    else:
        config.platform, config.default_model_filename = "tensorrt_plan", "model.plan"
    for tensor in network.tensors:
        held = config.input if tensor.kind == "input" else config.output
        dims = tensor.shape[1:] if batched else tensor.shape
        held.add(name=tensor.name, data_type=messages.DataType.Value(_data_type(tensor)), dims=dims)
    if batched:
        config.dynamic_batching.preferred_batch_size.extend(_preferred(network, batch_max))
    group = config.instance_group.add(count=options.instances, kind=_kind(messages, network, options))
    parameters = {contract.MANIFEST: to_json(network.manifest)}
    if engine is not None:
        group.profile.extend(str(number) for number in range(len(engine.profiles)))
        config.optimization.cuda.graphs = True
        for profile in engine.profiles:
            _add_graph(config.optimization.cuda.graph_spec.add(), profile, batch_max)
        parameters |= {
            "tensorrt": engine.library_version,
            "compute_capabilities": " ".join(engine.compute_capabilities),
        }
    _set_parameters(config, parameters)
    return config


def as_text(config: Any) -> str:
    """A configuration as the text of config.pbtxt."""
    from google.protobuf import text_format  # type: ignore[import-untyped]

    return text_format.MessageToString(config, as_utf8=True)


def _data_type(tensor: Tensor) -> str:
    if tensor.dtype not in _TYPES:
        raise UserError(f"{tensor.kind} {tensor.name} is {tensor.dtype}, which Triton's configuration has no type for")
    return _TYPES[tensor.dtype]


def _batch_max(network: Network, options: ServingOptions) -> int:
    most = network.manifest.inputs.batch_max
    return most if options.batch_max is None else min(most, options.batch_max)


def _preferred(network: Network, batch_max: int) -> Iterable[int]:
    """Batches that the network is tuned for, of those that the server makes."""
    if network.engine is None:
        return [batch_max]
    return sorted({min(profile.best[0], batch_max) for profile in network.engine.profiles})


def _kind(messages: Any, network: Network, options: ServingOptions) -> Any:
    """Where Triton places the network. An instance on GPU N opens its backend there, which those of CPUs refuse."""
    kinds, device = messages.ModelInstanceGroup, options.device
    if network.engine is not None and device == "cpu":
        raise UserError(f"{network.path}: an engine runs on a GPU; leave out --device cpu")
    if network.engine is not None and options.backend not in ("auto", "tensorrt"):
        raise UserError(f"{network.path}: an engine runs in TensorRT only; leave out --backend {options.backend}")
    if network.engine is None and options.backend == "tensorrt":
        raise UserError(f"{network.path}: --backend tensorrt runs engines; use ort-tensorrt for an exported file")
    if network.engine is not None:
        return kinds.KIND_GPU
    if options.backend != "auto":
        takes: Device = "gpu" if "device" in OPTIONS_BY_BACKEND[options.backend] else "cpu"
        if device not in ("auto", takes):
            raise UserError(f"--device {device}: --backend {options.backend} runs on a {takes.upper()}")
        device = takes
    elif options.placement == "inline" and device == "cpu":
        raise UserError("--device cpu: --backend auto takes a GPU where there is one; name cpu or openvino")
    return {"auto": kinds.KIND_AUTO, "cpu": kinds.KIND_CPU, "gpu": kinds.KIND_GPU}[device]


def _add_graph(graph: Any, profile: Profile, batch_max: int) -> None:
    """A CUDA graph for the shape that a profile was tuned for. Triton refuses one above the configuration's batch."""
    batch, height, width = profile.best
    first = [] if batch_max else [batch]
    graph.batch_size = min(batch, batch_max)
    graph.input["images"].dim.extend([*first, height, width, 3])
    graph.input["image_sizes"].dim.extend([*first, 2])


def _set_parameters(config: Any, parameters: Mapping[str, str]) -> None:
    for name, value in parameters.items():
        config.parameters[name].string_value = value
