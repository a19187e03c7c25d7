"""Reads frozen dataclasses from JSON, strictly: manifests and the configurations in checkpoints."""

from __future__ import annotations

import dataclasses
import math
from types import UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from .errors import UserError

Record = TypeVar("Record")


class RecordError(UserError):
    """A field is missing, unknown or of the wrong type."""


def record_from_dict(cls: type[Record], fields: dict[str, Any], source: str) -> Record:
    """An instance of the (nested) dataclass `cls` from a JSON object, which must have exactly the fields of `cls`.

    A field that older files lack gives the value to assume as "absent" in its metadata. `source` names the file in
    messages. Raises RecordError that names the field.
    """
    return _build(cls, fields, "", source)


def kind_of(value: Any) -> str:
    """The kind of a JSON value as a message names it, with the value if it is short."""
    names = {dict: "an object", list: "a list", str: "a text", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number") + (f" ({value!r})" if isinstance(value, str | int | float) else "")


def _build(cls: type, fields: dict[str, Any], prefix: str, source: str) -> Any:
    """An instance of dataclass `cls` from a JSON object that must have exactly its fields."""
    hints = get_type_hints(cls)
    absent = {field.name: field.metadata["absent"] for field in dataclasses.fields(cls) if "absent" in field.metadata}
    fields = {**absent, **fields}
    unknown, missing = sorted(fields.keys() - hints.keys()), [name for name in hints if name not in fields]
    if unknown:
        raise RecordError(f"{source}: unknown field {prefix + unknown[0]!r}")
    if missing:
        raise RecordError(f"{source}: field {prefix + missing[0]!r} is missing")
    return cls(**{name: _value(hint, fields[name], prefix + name, source) for name, hint in hints.items()})


def _value(hint: Any, value: Any, name: str, source: str) -> Any:
    """`value` as the annotated type; converted only if JSON lacks the type (list to tuple, 1 to 1.0)."""
    if dataclasses.is_dataclass(hint) and isinstance(value, dict):
        return _build(hint, value, name + ".", source)  # type: ignore[arg-type]
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return None if value is None else _value(arguments[0], value, name, source)
    if origin is Literal and isinstance(value, str) and value in arguments:
        return value
    if origin is tuple and isinstance(value, list):
        item_hints = [arguments[0]] * len(value) if arguments[-1] is Ellipsis else list(arguments)
        if len(item_hints) == len(value):
            return tuple(
                _value(h, v, f"{name}[{i}]", source) for i, (h, v) in enumerate(zip(item_hints, value, strict=True))
            )
    if origin is dict and isinstance(value, dict):
        return {key: _value(arguments[1], v, f"{name}.{key}", source) for key, v in value.items()}
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    if hint in (bool, int, str) and type(value) is hint:
        return value
    wanted = hint.__name__ if isinstance(hint, type) and origin is None else str(hint).replace("typing.", "")
    raise RecordError(f"{source}: field {name!r} is {kind_of(value)}, expected {wanted}")
