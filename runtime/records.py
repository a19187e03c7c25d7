"""Reads frozen dataclasses strictly, by their types and bounds: manifests, configurations, descriptions, settings.

A record is the schema of what is read. Its fields have types and, where the type alone allows nonsense, the bounds of
`bounds.py`; what must hold between fields is in its method `conflicts`.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping
from types import UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from .bounds import Conflicts, Constraint, shortened
from .errors import UserError

Record = TypeVar("Record")


class RecordError(UserError):
    """A field is missing, unknown, of the wrong type or out of its bounds.

    `name` is the field's, such as "preprocess.mean[0]", `expected` the values that it may have; both are empty where a
    field is missing or unknown.
    """

    def __init__(self, message: str, name: str = "", expected: str = "") -> None:
        super().__init__(message)
        self.name, self.expected = name, expected


def record_from_dict(cls: type[Record], fields: Any, source: str) -> Record:
    """An instance of the (nested) dataclass `cls` from a JSON object, which must have exactly the fields of `cls`.

    A field that older files lack gives the value to assume as "absent" in its metadata. `source` names the file in
    messages. Raises RecordError that names the field.
    """
    if not isinstance(fields, Mapping):
        raise RecordError(f"{source}: {kind_of(fields)}, expected an object")
    return _build(cls, fields, "", source)


def check_record(record: Any, source: str) -> None:
    """Raise RecordError where a record that the program made breaks the schema of its class."""
    record_from_dict(type(record), plain(record), source)


def plain(value: Any) -> Any:
    """A record, or a value of one, as JSON has it: objects, lists, numbers and texts."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {key: plain(one) for key, one in value.items()}
    return [plain(one) for one in value] if isinstance(value, tuple | list) else value


def kind_of(value: Any) -> str:
    """The kind of a JSON value as a message names it, with the value itself, cut if it is long."""
    names = {dict: "an object", list: "a list", str: "a text", bool: "a boolean", type(None): "null"}
    known = names.get(type(value), "a number" if isinstance(value, int | float) else type(value).__name__)
    return known + (f" ({shown(value)})" if isinstance(value, str | int | float) else "")


def shown(value: Any) -> str:
    """A value in a message: cut where it is long, and with escapes in place of control characters."""
    try:
        return shortened(ascii(value) if isinstance(value, str) and not value.isprintable() else repr(value))
    except ValueError:  # Python writes no whole number of more than 4300 digits
        return "thousands of digits"


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    return get_type_hints(cls, include_extras=True)


def _build(cls: type, fields: Mapping[str, Any], prefix: str, source: str) -> Any:
    """An instance of dataclass `cls` from a JSON object that must have exactly its fields."""
    hints = _hints(cls)
    absent = {field.name: field.metadata["absent"] for field in dataclasses.fields(cls) if "absent" in field.metadata}
    fields = {**absent, **fields}
    unknown, missing = sorted(fields.keys() - hints.keys()), [name for name in hints if name not in fields]
    if unknown:
        raise RecordError(f"{source}: unknown field {shortened(ascii(prefix + unknown[0]))}")
    if missing:
        raise RecordError(f"{source}: field {prefix + missing[0]!r} is missing")
    record = cls(**{name: _value(hint, fields[name], prefix + name, source) for name, hint in hints.items()})
    if isinstance(record, Conflicts):
        for name, expected in record.conflicts():
            value = functools.reduce(getattr, name.split("."), record)
            raise _wrong(plain(value), prefix + name, expected, source)
    return record


def _wrong(value: Any, name: str, expected: str, source: str) -> RecordError:
    found = kind_of(value) if not isinstance(value, list) else f"a list ({shortened(', '.join(map(shown, value)))})"
    return RecordError(f"{source}: field {name!r} is {found}, expected {expected}", name, expected)


def _value(hint: Any, value: Any, name: str, source: str) -> Any:
    """`value` as the annotated type; converted only if JSON lacks the type (list to tuple, 1 to 1.0)."""
    if dataclasses.is_dataclass(hint) and isinstance(value, dict):
        return _build(hint, value, name + ".", source)  # type: ignore[arg-type]
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        found = _value(arguments[0], value, name, source)
        for constraint in arguments[1:]:
            if isinstance(constraint, Constraint) and not constraint.holds(found):
                raise _wrong(value, name, constraint.expected, source)
        return found
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
        return {
            _value(arguments[0], key, name, source): _value(arguments[1], v, f"{name}.{shortened(key)}", source)
            for key, v in value.items()
        }
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool) and _is_finite(value):
        return float(value)
    if hint in (bool, int, str) and type(value) is hint:
        return value
    raise _wrong(value, name, _wanted(hint), source)


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number that no float can hold
        return False


def _wanted(hint: Any) -> str:
    """A type as messages name it, without bounds."""
    if get_origin(hint) is Annotated:
        return _wanted(get_args(hint)[0])
    if isinstance(hint, type) and get_origin(hint) is None:
        return hint.__name__
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (tuple, dict, Union, UnionType) and arguments:
        inner = ["..." if one is Ellipsis else _wanted(one) for one in arguments]
        return " | ".join(inner) if origin in (Union, UnionType) else f"{origin.__name__}[{', '.join(inner)}]"
    return "None" if hint is type(None) else str(hint).replace("typing.", "")
