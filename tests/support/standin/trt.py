"""TensorRT over the driver, with the names and signatures that a version has and no other.

A name of the version's committed list that the stand-in doesn't do says so when it is used. One that isn't in the list
isn't there, even if the stand-in could do it. A call whose arguments no recorded signature of the version takes is a
TypeError, as it is with the real bindings.
"""

from __future__ import annotations

import enum
import functools
import numbers
import types
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.tensorrt_api.lists import LISTS, Library, Member, load
from benchmarks.tensorrt_api.signatures import mismatch

from .driver import Driver
from .trt_context import Context, Shared
from .trt_engine import Engine, Inspector, Logger, Runtime, RuntimeCache, RuntimeConfig

NAMES = {path.stem: path for path in LISTS}
MODELLED: dict[str, type] = {
    "ILogger": Logger,
    "Runtime": Runtime,
    "ICudaEngine": Engine,
    "EngineInspector": Inspector,
    "IExecutionContext": Context,
    "IRuntimeConfig": RuntimeConfig,
    "IRuntimeCache": RuntimeCache,
}


def make_tensorrt(driver: Driver, names: str, context: type = Context) -> tuple[types.ModuleType, Shared]:
    """`tensorrt` or `tensorrt_rtx` with the names of benchmarks/tensorrt_api/NAMES.json, and what its objects share.

    `context` models IExecutionContext.
    """
    library = library_of(names)
    module: Any = types.ModuleType("tensorrt_rtx" if library.flavor == "rtx" else "tensorrt")
    shared = Shared(driver, module)
    module.__version__ = library.version
    for name, values in library.enums.items():
        setattr(module, name, enum.Enum(name, values))
    classes = MODELLED | {"IExecutionContext": context}
    for name in library.classes:
        setattr(module, name, _listed_class(name, library, classes.get(name), shared))
    return module, shared


@functools.cache
def library_of(names: str) -> Library:
    """The committed list of benchmarks/tensorrt_api/NAMES.json."""
    return load(NAMES[names])


def _listed_class(name: str, library: Library, modelled: type | None, shared: Shared) -> type:
    """What `modelled` has of the listed members, and private ones of its own; the rest of the list fails when used."""
    members = library.classes[name]
    own = vars(modelled) if modelled else {}
    body = {
        key: value for key, value in own.items() if key in members or (key.startswith("_") and not _is_class_s(key))
    }
    for key, member in members.items():
        if key not in body:
            body[key] = _not_modelled(name, key)
        elif member.overloads:
            body[key] = _with_signature(f"{name}.{key}", body[key], member, library)
    return type(name, (), {**body, "_shared": shared})


def _with_signature(label: str, function: Any, member: Member, library: Library) -> Callable[..., Any]:
    """The function, which raises TypeError for arguments that no recorded overload takes."""

    @functools.wraps(function)
    def called(self: Any, *positional: Any, **keywords: Any) -> Any:
        kinds = {key: type_name(value) for key, value in keywords.items()}
        problem = mismatch(member.overloads, [type_name(value) for value in positional], kinds, library.fits)
        if problem:
            raise TypeError(f"{label}(): incompatible function arguments: {problem}")
        return function(self, *positional, **keywords)

    return called


def type_name(value: Any) -> str:
    """The name of a value's type as the lists write it: that of the library's class for an object of a subclass."""
    for kind in (bool, int, float, str, bytes, tuple, list):
        if isinstance(value, kind):
            return kind.__name__
    if value is None or isinstance(value, np.ndarray):
        return "None" if value is None else "ndarray"
    if isinstance(value, numbers.Integral):  # NumPy's
        return "int"
    return next((base.__name__ for base in type(value).__mro__ if "_shared" in vars(base)), type(value).__name__)


def _is_class_s(key: str) -> bool:
    return key in ("__dict__", "__weakref__", "__module__", "__qualname__", "__doc__", "__annotations__")


def _not_modelled(name: str, member: str) -> property:
    def fail(self: Any, *_: Any) -> Any:
        raise NotImplementedError(f"the stand-in doesn't do {name}.{member}")

    return property(fail, fail)
