"""The precision of an engine's convolutions, as its inspector reports them on the GPU that the engine is for.

An engine that was asked for in fp16 and built in fp32 runs and finds the right boxes, but takes four times as long.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

from runtime.backends.engine_file import EngineManifest
from runtime.backends.trt.engine import import_tensorrt
from runtime.manifest import Precision

from ..onnx_model.precision import format_counts
from .progress import make_logger
from .settings import BuildError

# How the inspector names formats and types: "Half", "Row major linear FP16 format", "kHALF"; TensorRT 11 splits
# "Format/Datatype" into "Format" and "DataType".
_TYPES = (
    ("int8", re.compile(r"\bk?int8\b", re.IGNORECASE)),
    ("fp8", re.compile(r"\bk?fp8\b|\be4m3", re.IGNORECASE)),
    ("bf16", re.compile(r"\bk?bf16\b|bfloat16", re.IGNORECASE)),
    ("fp16", re.compile(r"\bk?(half|fp16)\b", re.IGNORECASE)),
    ("fp32", re.compile(r"\bk?(float|fp32|tf32)\b", re.IGNORECASE)),
)
_TYPE_KEYS = ("Format/Datatype", "DataType", "Datatype", "Format")
_CONVOLUTION = re.compile(r"conv", re.IGNORECASE)
MOST = 0.5  # fraction of the convolutions that must have the engine's precision


def count_precisions(trt: Any, logger: Any, errors: list[str], data: bytes, version_compatible: bool) -> dict[str, int]:
    """How many convolutions of an engine have which precision; empty where the inspector reports no layers.

    The engine must be for this machine's GPU. `errors` is the list that `logger` fills. Raises BuildError for an engine
    that can't be deserialized.
    """
    trt_runtime = trt.Runtime(logger)
    if version_compatible:  # such an engine brings a part of the library as code
        trt_runtime.engine_host_code_allowed = True
    errors.clear()  # a build logs errors that it recovers from
    engine = trt_runtime.deserialize_cuda_engine(data)
    if engine is None:
        raise BuildError(
            "TensorRT cannot deserialize the engine on the GPU that it was built for: "
            f"{(errors[-1] if errors else 'it gives no reason')[:500]}; if the device's memory is full, free it"
        )
    inspector = engine.create_engine_inspector()
    return convolutions_by_precision(inspector.get_engine_information(trt.LayerInformationFormat.JSON))


def inspect_convolutions(described: EngineManifest, data: bytes) -> dict[str, int]:
    """`count_precisions` of the bytes of an engine that fits the GPU here. Check their hash before."""
    trt = import_tensorrt(described.flavor)
    errors: list[str] = []
    return count_precisions(trt, make_logger(trt, errors, []), errors, data, described.version_compatible)


def convolutions_by_precision(information: str) -> dict[str, int]:
    """Convolutions in the inspector's JSON by the precision of their input; empty without layer types.

    Engines that were built without detailed verbosity have no layer types.
    """
    try:
        layers = json.loads(information).get("Layers", [])
    except (ValueError, AttributeError):
        return {}
    return dict(Counter(precision for layer in layers if isinstance(layer, dict) for precision in _precisions(layer)))


def _precisions(layer: dict[str, Any]) -> Iterator[str]:
    """The precision of a convolution layer; nothing for other layers."""
    described = " ".join(str(layer.get(key, "")) for key in ("LayerType", "ParameterType", "Name", "Metadata"))
    if not _CONVOLUTION.search(described) or layer.get("LayerType") in ("Reformat", "NoOp", "Constant"):
        return
    for tensor in (*layer.get("Inputs", [])[:1], *layer.get("Outputs", [])[:1]):
        for name in (tensor.get(key, "") for key in _TYPE_KEYS):
            for precision, pattern in _TYPES:
                if pattern.search(str(name)):
                    yield precision
                    return


def precision_problem(layers: dict[str, int], precision: Precision) -> str | None:
    """Why an engine with these convolutions doesn't have its precision; None where it has, or where none is known."""
    total = sum(layers.values())
    if not total or precision == "fp32":  # TensorRT never makes a layer narrower than the graph's types
        return None
    if layers.get(precision, 0) / total >= MOST:
        return None
    return f"only {layers.get(precision, 0)} of {total} convolutions are {precision} ({format_counts(layers)})"
