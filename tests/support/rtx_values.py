"""Gives values of every kind to methods of the installed TensorRT for RTX, and prints as JSON which it takes.

It is a process of its own, which ends without destroying the library's objects: after such calls that may crash.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any

import numpy as np

from .standin.trt import type_name

_kept: list[Any] = []  # until the process ends


def trials() -> list[tuple[str, str, list[str], str, bool]]:
    """Class, method, types of the arguments, type of the last parameter, whether the call was taken."""
    import tensorrt_rtx as trt

    logger = trt.Logger(trt.ILogger.INTERNAL_ERROR)
    builder = trt.Builder(logger)
    network, config = builder.create_network(0), builder.create_builder_config()
    profile, parser = builder.create_optimization_profile(), trt.OnnxParser(network, logger)
    capability, preview = trt.ComputeCapability.SM75, next(iter(trt.PreviewFeature.__members__.values()))
    values = [True, 1, np.int32(1), 1.5, "x", b"x", (1, 2), [1, 2], None, np.zeros(2, np.int64), object()]
    values += [logger, network, config, profile, trt.BuilderFlag.TF32, trt.MemoryPoolType.WORKSPACE, capability]
    values += [trt.float32, trt.Dims((1, 2)), trt.Weights()]
    methods: list[tuple[Any, str, tuple[Any, ...], str]] = [
        (builder, "__init__", (), "ILogger"),
        (parser, "__init__", (network,), "ILogger"),
        (builder, "create_network", (), "SupportsInt"),
        (builder, "is_network_supported", (network,), "IBuilderConfig"),
        (config, "add_optimization_profile", (), "IOptimizationProfile"),
        (config, "create_timing_cache", (), "Buffer"),
        (config, "get_flag", (), "BuilderFlag"),
        (config, "set_compute_capability", (capability,), "SupportsInt"),
        (config, "set_flag", (), "BuilderFlag"),
        (config, "set_memory_pool_limit", (trt.MemoryPoolType.WORKSPACE,), "SupportsInt"),
        (config, "set_preview_feature", (preview,), "bool"),
        (network, "add_constant", ((2,),), "Weights"),
        (network, "add_input", ("a", trt.float32), "Dims"),
        (parser, "parse", (b"x",), "str"),
        (parser, "supports_operator", (), "str"),
        (profile, "set_shape", ("x", (1,), (1,)), "Dims"),
        (profile, "set_shape_input", ("x", [1], [1]), "Sequence"),
    ]
    _kept.extend((*values, builder, parser))
    found = []
    for holder, method, first, wanted in methods:
        call = type(holder) if method == "__init__" else getattr(holder, method)
        for value in values:
            given = (*first, value)
            kinds = [type_name(part) for part in given]
            found.append((type(holder).__name__, method, kinds, wanted, takes(call, given)))
    return found


def takes(method: Callable[..., object], given: tuple[object, ...]) -> bool:
    """Whether the library takes arguments of these types, whatever it then does with them."""
    try:
        method(*given)
    except TypeError as error:
        return "incompatible" not in str(error)
    except RuntimeError:
        return True
    return True


if __name__ == "__main__":
    import tensorrt_rtx

    print(json.dumps({"version": tensorrt_rtx.__version__, "trials": trials()}), flush=True)
    os._exit(0)
