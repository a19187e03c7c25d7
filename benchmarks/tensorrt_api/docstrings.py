"""Reads pybind11's docstrings: what a binding's member takes and gives, as one line for the lists.

A method or constructor is "(name: str, index: SupportsInt = 0) -> bool", without self; a static method begins with
"static ", and overloads are a list of lines. A property is "get int", "get int, set SupportsInt" or "set Buffer". A
constant is "constant Severity", and a class within the class "class".
"""

from __future__ import annotations

import inspect
import re
from typing import Any

from benchmarks.tensorrt_api.signatures import Signature, SignatureError, parse_signature

# Modules before a name: "tensorrt_bindings.tensorrt.Builder", "collections.abc.Sequence".
_MODULES = re.compile(r"\b(?:[a-z_]\w*\.)+(?=[A-Za-z])")
# A type that pybind11 has no Python name for: "nvinfer1::ISymExpr", "detail::accessor<detail::str_attr>".
_CPP = re.compile(r"\w+(?:::\w+)+(?:<[\w:, ]*>)?")
_DEFAULT = re.compile(r"<(\w+(?:\.\w+)+): -?\d+>")  # "<DataType.FLOAT: 0>"
_OBJECT = re.compile(r"<[\w.]+ object at 0x[0-9a-f]+>")
_NOT_PYBIND = ("wrapper_descriptor", "method-wrapper")  # `object.__init__`: the class can't be made from Python
Entry = str | list[str]


class DocstringError(Exception):
    """A docstring without the signature that pybind11 writes into its first line."""


def entry_of(holder: type, name: str) -> Entry | None:
    """The entry of a class's member; None for a constructor that the class doesn't have. Raises DocstringError."""
    member = inspect.getattr_static(holder, name)
    where = f"{holder.__name__}.{name}"
    kind = type(member).__name__
    if kind in _NOT_PYBIND:
        return None
    if isinstance(member, property):
        return _property_entry(where, member)
    if isinstance(member, staticmethod):
        signatures = signatures_of(where, name, member.__func__.__doc__)
        return _entry([f"static {signature}" for signature in signatures])
    if kind == "pybind11_static_property":
        return f"constant {type(getattr(holder, name)).__qualname__}"
    if isinstance(member, type):
        return "class"
    if callable(member):
        return _entry([_without_self(where, line) for line in signatures_of(where, name, member.__doc__)])
    return f"constant {type(member).__qualname__}"


def function_entry(name: str, function: Any) -> Entry:
    """The entry of a module's function, which may be written in Python. Raises DocstringError."""
    if inspect.isfunction(function):
        return str(inspect.signature(function))
    return _entry(signatures_of(name, name, function.__doc__))


def signatures_of(where: str, name: str, docstring: str | None) -> list[str]:
    """The signatures in a docstring, one for each overload. Raises DocstringError where one can't be read."""
    lines = (docstring or "").strip().splitlines()
    if lines[1:2] == ["Overloaded function."]:
        numbered = re.compile(rf"\d+\. {name}(\(.*)")
        found = [match[1] for line in lines if (match := numbered.fullmatch(line))]
        if len(found) < 2:
            raise DocstringError(f"{where}: {len(found)} signatures of an overloaded function in its docstring")
    else:
        found = [lines[0].removeprefix(name)] if lines and lines[0].startswith((f"{name}(", "(")) else []
        if not found:
            raise DocstringError(f"{where}: no signature in its docstring {docstring!r:.120}")
    return [readable(where, line) for line in found]


def readable(where: str, signature: str) -> str:
    """A signature with short names of types. Raises DocstringError where it can't be parsed."""
    text = _OBJECT.sub("...", _DEFAULT.sub(r"\1", _MODULES.sub("", signature)))
    text = _CPP.sub(lambda match: repr(match[0]), text)
    _parse(where, text)
    return text


def _parse(where: str, signature: str) -> Signature:
    try:
        parsed = parse_signature(signature)
    except SignatureError as error:
        raise DocstringError(f"{where}: {error}") from error
    if not parsed.result:
        raise DocstringError(f"{where}: {signature!r} names no result")
    return parsed


def _entry(signatures: list[str]) -> Entry:
    return signatures[0] if len(signatures) == 1 else signatures


def _without_self(where: str, signature: str) -> str:
    """The signature of a method as its callers see it: "(self: X, n: int) -> None" becomes "(n: int) -> None"."""
    parameters = _parse(where, signature).parameters
    if not parameters or parameters[0].name not in ("self", "arg0"):
        raise DocstringError(f"{where}: {signature!r} has no self")
    first = f"{parameters[0].name}: {parameters[0].type}"
    if not signature[1:].startswith(first):
        raise DocstringError(f"{where}: {signature!r} doesn't begin with {first}")
    return f"({signature[1:].removeprefix(first).removeprefix(', ')}"


def _property_entry(where: str, member: property) -> str:
    parts = []
    if member.fget is not None:
        (signature,) = _accessors(where, member.fget)
        parts.append(f"get {_parse(where, signature).result}")
    if member.fset is not None:
        (signature,) = _accessors(where, member.fset)
        parameters = _parse(where, signature).parameters
        if len(parameters) != 2:
            raise DocstringError(f"{where}: its setter {signature!r} doesn't take one value")
        parts.append(f"set {parameters[1].type}")
    return ", ".join(parts)


def _accessors(where: str, function: Any) -> list[str]:
    return signatures_of(where, function.__name__, function.__doc__)
