"""The committed lists: what each class of a TensorRT library has, and how it is used."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, NamedTuple

from .signatures import Signature, SignatureError, accepts, parse_signature

LISTS = sorted(Path(__file__).parent.glob("*.json"))
_FEWEST = {"enums": 60, "classes": 120, "others": 15}  # of a whole list
_FEWEST_SIGNATURES = 450
_CPP = re.compile(r"'(?:\w+::)+(\w+)(?:<.*>)?'")
# Classes whose Python name isn't the C++ name.
_PYTHON_NAMES = {"IParserError": "ParserError"}


class ListError(Exception):
    """A list that isn't whole, which the check must not take for "no findings"."""


class Member(NamedTuple):
    """A member of a class, or of the module. A property has `gets` or `sets` or both: the types of its value."""

    kind: Literal["method", "static method", "property", "constant", "class"]
    overloads: tuple[Signature, ...] = ()
    gets: str | None = None
    sets: str | None = None

    @property
    def result(self) -> str:
        """The type of what a call returns or a read gives; "" where overloads differ, or where it isn't known."""
        if self.overloads:
            results = {signature.result for signature in self.overloads}
            return results.pop() if len(results) == 1 else ""
        return self.gets or ""


class Library(NamedTuple):
    """The interface of one library."""

    label: str  # "rtx 1.7.1.116"
    flavor: str
    version: str
    wheel: str  # "tensorrt-rtx-cu13-bindings 1.7.1.116"
    enums: dict[str, dict[str, int]]
    classes: dict[str, dict[str, Member]]  # inherited members included
    bases: dict[str, set[str]]  # all listed classes that a class inherits from
    others: dict[str, Member]  # functions and constants of the module

    @property
    def members(self) -> dict[str, set[str]]:
        """The names of members by class and enumeration."""
        found = {name: {*values, "name", "value"} for name, values in self.enums.items()}
        return found | {name: set(members) for name, members in self.classes.items()}

    def has(self, owner: str, member: str | None) -> bool:
        """Whether the library has this class, or this member of it."""
        if owner in self.enums:
            return member is None or member in self.enums[owner] or member in ("name", "value")
        return owner in self.classes and (member is None or member in self.classes[owner])

    def member(self, owner: str, name: str) -> Member | None:
        """A member of a class, or of the module `trt`; None where there is none, and for enumerations."""
        return self.others.get(name) if owner == "trt" else self.classes.get(owner, {}).get(name)

    def fits(self, wanted: str, given: str) -> bool:
        """Whether a value of type `given` goes where type `wanted` is written; a type "" is not known, and fits."""
        return accepts(wanted, given, self._ancestors)

    def _ancestors(self, kind: str) -> set[str]:
        return {"enum"} if kind in self.enums else self.bases.get(kind, set())


def load_all(paths: Iterable[Path] = LISTS) -> list[Library]:
    """All committed lists. Raises ListError where a flavor has none."""
    libraries = [load(path) for path in paths]
    for flavor in ("rtx", "tensorrt"):
        if flavor not in (library.flavor for library in libraries):
            raise ListError(f"there is no list of {flavor}")
    return libraries


def load(path: Path) -> Library:
    """Read a list that read_names.py wrote; the file's name begins with the flavor. Raises ListError."""
    try:
        return _library(path.name.split("-")[0], json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, KeyError, TypeError, AttributeError, SignatureError, ListError) as error:
        raise ListError(f"{path}: {type(error).__name__}: {error}; make it again with read_names.py") from error


def _library(flavor: str, found: dict[str, Any]) -> Library:
    for key, fewest in _FEWEST.items():
        if len(found[key]) < fewest:
            raise ListError(f"{len(found[key])} {key}, expected {fewest} or more")
    listed = {*found["enums"], *found["classes"]}
    own = {
        name: {key: _member(f"{name}.{key}", entry, listed) for key, entry in members.items() if key != "bases"}
        for name, members in found["classes"].items()
    }
    direct = {name: members.get("bases", []) for name, members in found["classes"].items()}
    if missing := {base for bases in direct.values() for base in bases} - own.keys():
        raise ListError(f"base classes that aren't listed: {', '.join(sorted(missing))}")
    classes = {name: _inherited(name, own, direct) for name in own}
    count = sum(len(member.overloads) for members in own.values() for member in members.values())
    if count < _FEWEST_SIGNATURES:
        raise ListError(f"{count} signatures, expected {_FEWEST_SIGNATURES} or more")
    others = {name: _member(name, entry, listed) for name, entry in found["others"].items()}
    bases = {name: set(names) for name, names in direct.items()}
    version = found["version"]
    return Library(f"{flavor} {version}", flavor, version, found["wheel"], found["enums"], classes, bases, others)


def _inherited(name: str, own: dict[str, dict[str, Member]], direct: dict[str, list[str]]) -> dict[str, Member]:
    """A class's members; `direct` lists all its bases, the nearest first."""
    members: dict[str, Member] = {}
    for holder in (*reversed(direct[name]), name):
        members |= own[holder]
    return members


def _member(where: str, entry: str | list[str], listed: set[str]) -> Member:
    lines = [entry] if isinstance(entry, str) else entry
    if not lines:
        raise ListError(f"{where} has no signature")
    if lines == ["class"]:
        return Member("class")
    if match := re.fullmatch(r"constant (\S+)", lines[0]):
        return Member("constant", gets=match[1])
    if match := re.fullmatch(r"(?:get (.+?))?(?:(?:, |^)set (.+))?", lines[0]):
        if lines[0]:
            return Member("property", gets=_python(match[1], listed), sets=_python(match[2], listed))
        raise ListError(f"{where} has an empty entry")
    is_static = all(line.startswith("static ") for line in lines)
    overloads = tuple(_signature(where, line.removeprefix("static "), listed) for line in lines)
    return Member("static method" if is_static else "method", overloads)


def _signature(where: str, line: str, listed: set[str]) -> Signature:
    try:
        parsed = parse_signature(line)
    except SignatureError as error:
        raise ListError(f"{where}: {error}") from error
    parameters = tuple(p._replace(type=_python(p.type, listed)) for p in parsed.parameters)
    return Signature(parameters, _python(parsed.result, listed) or "")


def _python(kind: str | None, listed: set[str]) -> Any:
    """The Python class of a C++ name, which pybind11 writes where the class was bound later; "" where there is none."""
    match = _CPP.fullmatch(kind or "")
    if match is None:
        return kind
    name = _PYTHON_NAMES.get(match[1], match[1])
    return name if name in listed else ""
