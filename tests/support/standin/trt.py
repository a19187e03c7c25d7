"""TensorRT over the driver, with the names that a version has and no other.

A name of the version's committed list that the stand-in doesn't do says so when it is used. One that isn't in the list
isn't there, even if the stand-in could do it.
"""

from __future__ import annotations

import enum
import json
import types
from pathlib import Path
from typing import Any

from .driver import Driver
from .trt_context import Context, Shared
from .trt_engine import Engine, Inspector, Logger, Runtime, RuntimeCache, RuntimeConfig

NAMES = {path.stem: path for path in (Path(__file__).parents[3] / "benchmarks" / "tensorrt_api").glob("*.json")}
_CLASSES: dict[str, type] = {
    "ILogger": Logger,
    "Runtime": Runtime,
    "ICudaEngine": Engine,
    "EngineInspector": Inspector,
    "IRuntimeConfig": RuntimeConfig,
    "IRuntimeCache": RuntimeCache,
}


def make_tensorrt(driver: Driver, names: str, context: type = Context) -> tuple[types.ModuleType, Shared]:
    """`tensorrt` or `tensorrt_rtx` with the names of benchmarks/tensorrt_api/NAMES.json, and what its objects share.

    `context` models IExecutionContext.
    """
    listed = json.loads(NAMES[names].read_text(encoding="utf-8"))
    module: Any = types.ModuleType("tensorrt_rtx" if names.startswith("rtx") else "tensorrt")
    shared = Shared(driver, module)
    module.__version__ = listed["version"]
    for name, values in listed["enums"].items():
        setattr(module, name, enum.Enum(name, values))
    classes = _CLASSES | {"IExecutionContext": context}
    for name, members in listed["classes"].items():
        setattr(module, name, _listed_class(name, set(members), classes.get(name), shared))
    return module, shared


def _listed_class(name: str, members: set[str], modelled: type | None, shared: Shared) -> type:
    """What `modelled` has of the listed members, and private ones of its own; the rest of the list fails when used."""
    own = vars(modelled) if modelled else {}
    body = {
        key: value for key, value in own.items() if key in members or (key.startswith("_") and not _is_class_s(key))
    }
    body |= {key: _not_modelled(name, key) for key in members if key not in body}
    return type(name, (), {**body, "_shared": shared})


def _is_class_s(key: str) -> bool:
    return key in ("__dict__", "__weakref__", "__module__", "__qualname__", "__doc__", "__annotations__")


def _not_modelled(name: str, member: str) -> property:
    def fail(self: Any, *_: Any) -> Any:
        raise NotImplementedError(f"the stand-in doesn't do {name}.{member}")

    return property(fail, fail)
