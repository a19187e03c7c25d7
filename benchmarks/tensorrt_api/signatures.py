"""Signatures as the lists write them, and whether arguments fit them.

A type is a Python expression: "int", "Sequence[SupportsInt]", "IErrorRecorder", or a C++ name in quotes where pybind11
knows no Python type; "" is a type that nobody wrote down.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

_UNNAMED = re.compile(r"arg\d+")  # pybind11's own names, which a caller can't write as keywords
_ACCEPTED = {
    "SupportsInt": {"int", "bool", "enum"},
    "SupportsFloat": {"int", "float", "bool"},
    "Buffer": {"bytes", "bytearray", "memoryview", "ndarray", "IHostMemory"},
    "Dims": {"tuple", "list"},
    "Permutation": {"tuple", "list"},
    "Sequence": {"tuple", "list", "Dims"},
    "Weights": {"ndarray"},
}
_ANYTHING = {"", "object", "Any", "CapsuleType", "Callable"}


class SignatureError(Exception):
    """A text that isn't a signature."""


class Parameter(NamedTuple):
    """One parameter; `type` is "" where it isn't written down."""

    name: str
    type: str
    has_default: bool
    takes_none: bool  # its default is None


class Signature(NamedTuple):
    """The parameters without self, and the type of the result ("" where it isn't written down)."""

    parameters: tuple[Parameter, ...]
    result: str

    def __str__(self) -> str:
        return f"({', '.join(parameter.name for parameter in self.parameters)})"


Fits = Callable[[str, str], bool]  # whether a value of the second type goes where the first is wanted


def parse_signature(text: str) -> Signature:
    """Parse "(name: str, index: SupportsInt = 0) -> bool". Raises SignatureError.

    Python's parser wouldn't do: pybind11 lets a required parameter follow parameters with defaults.
    """
    match = re.fullmatch(r"\((.*)\)(?: -> (.+))?", text)
    if match is None:
        raise SignatureError(f"{text!r} isn't (parameters) -> result")
    parameters = tuple(_parameter(part, text) for part in _split(match[1], text))
    names = [parameter.name for parameter in parameters]
    if len(set(names)) < len(names):
        raise SignatureError(f"{text!r} has two parameters of one name")
    return Signature(parameters, _expression(match[2], text) if match[2] else "")


def _split(text: str, whole: str) -> list[str]:
    """The parts between commas that no bracket and no quote encloses."""
    parts, depth, quote = [""], 0, ""
    for character in text:
        if quote:
            quote = "" if character == quote else quote
        elif character in "'\"":
            quote = character
        elif character in "([{":
            depth += 1
        elif character in ")]}":
            depth -= 1
        if character == "," and not depth and not quote:
            parts.append("")
        else:
            parts[-1] += character
    if depth or quote:
        raise SignatureError(f"{whole!r} has an open bracket or quote")
    return [part.strip() for part in parts] if text.strip() else []


def _parameter(text: str, whole: str) -> Parameter:
    match = re.fullmatch(r"([A-Za-z_]\w*)(?:: ([^=]+?))?(?: ?= ?(.+))?", text)
    if match is None:
        raise SignatureError(f"{text!r} in {whole!r} isn't a parameter")
    if match[3]:
        _expression(match[3], whole)
    return Parameter(
        match[1], _expression(match[2], whole) if match[2] else "", match[3] is not None, match[3] == "None"
    )


def _expression(text: str, whole: str) -> str:
    try:
        return ast.unparse(ast.parse(text, mode="eval"))
    except SyntaxError as error:
        raise SignatureError(f"{text!r} in {whole!r} isn't an expression") from error


def mismatch(
    overloads: Sequence[Signature], positional: Sequence[str], keywords: Mapping[str, str], fits: Fits
) -> str | None:
    """Why no overload takes arguments of these types ("" is a type that isn't known); None where one does."""
    reasons = [_mismatch(signature, positional, keywords, fits) for signature in overloads]
    if not all(reasons):
        return None
    return " / ".join(dict.fromkeys(reason for reason in reasons if reason))


def _mismatch(signature: Signature, positional: Sequence[str], keywords: Mapping[str, str], fits: Fits) -> str | None:
    parameters = signature.parameters
    if len(positional) > len(parameters):
        return f"{len(positional)} arguments for {signature}"
    given = {parameter.name: kind for parameter, kind in zip(parameters, positional, strict=False)}
    for name, kind in keywords.items():
        if name not in (parameter.name for parameter in parameters) or _UNNAMED.fullmatch(name):
            return f"no parameter can be given as {name}= in {signature}"
        if name in given:
            return f"{name} is given twice in {signature}"
        given[name] = kind
    for parameter in parameters:
        if parameter.name not in given:
            if not parameter.has_default:
                return f"{parameter.name} is missing in {signature}"
        elif given[parameter.name] == "None" and parameter.takes_none:
            continue
        elif not fits(parameter.type, given[parameter.name]):
            return f"{parameter.name} is {given[parameter.name]}, expected {parameter.type}"
    return None


def root(kind: str) -> str:
    """The type without its arguments: "list[str]" is a list."""
    return kind.split("[")[0]


def accepts(wanted: str, given: str, ancestors: Callable[[str], set[str]]) -> bool:
    """Whether a value of type `given` goes where `wanted` is written; in doubt not.

    pybind11 takes more in places: None for a pointer, but not for a reference, and the docstring doesn't tell which.
    `ancestors` gives the listed classes that a class inherits from, and "enum" for an enumeration.
    """
    if not given or wanted.startswith(("'", '"')):
        return True
    options = [part.strip() for part in wanted.split(" | ")] if "[" not in wanted else [wanted]
    kinds = {root(given), *ancestors(root(given))}
    return any(
        option in _ANYTHING or option in kinds or kinds & _ACCEPTED.get(option, set()) for option in map(root, options)
    )
