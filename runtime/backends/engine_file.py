"""A TensorRT engine and what lies beside it: `NAME.engine` and `NAME.engine.json`.

An engine is executable code, bound to a library version and to kinds of GPU. Nothing about it can be asked before it is
deserialized, and deserializing a foreign one may run anything: so all that one needs to know, and the hash of its
bytes, stands in the JSON.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import platform
import re
from pathlib import Path
from typing import Any, Literal

from ..command_names import TO_TRT
from ..errors import UserError
from ..files import atomic_write_together
from ..manifest import Manifest, ManifestError
from ..manifest import check as check_manifest
from ..names import unknown_name
from ..records import RecordError, kind_of, record_from_dict

ENGINE_MANIFEST_VERSION = 1
SUFFIXES = (".engine", ".plan", ".trt")

Flavor = Literal["tensorrt", "rtx"]


class EngineError(UserError):
    """An engine that is missing, altered, or without the description that belongs to it."""


@dataclasses.dataclass(frozen=True)
class Profile:
    """An optimization profile: the range of `images`, as (batch, height, width), and what it was tuned for."""

    least: tuple[int, int, int]
    best: tuple[int, int, int]
    most: tuple[int, int, int]

    def takes(self, batch: int, height: int, width: int) -> bool:
        shape = (batch, height, width)
        return all(low <= n <= high for low, n, high in zip(self.least, shape, self.most, strict=True))


@dataclasses.dataclass(frozen=True)
class Tensor:
    """One input or output of the engine."""

    name: str
    kind: Literal["input", "output"]
    dtype: str  # NumPy's name
    shape: tuple[int, ...]  # −1: depends on the batch or the canvas


@dataclasses.dataclass(frozen=True)
class EngineManifest:
    manifest: Manifest  # of the graph that it was built from
    flavor: Flavor
    library_version: str  # of TensorRT or TensorRT for RTX, in full
    compute_capabilities: tuple[str, ...]  # such as "8.6"; the GPUs that it runs on
    platform: str  # such as "linux-x86_64"
    engine_sha256: str
    onnx_sha256: str  # of the ONNX file's bytes
    profiles: tuple[Profile, ...]
    tensors: tuple[Tensor, ...]
    rebuild: str  # the command that builds it again, but for folders
    layers: dict[str, int]  # convolutions by precision, as its inspector counts them; empty where it couldn't be asked
    version_compatible: bool = False  # later versions of the library run it too: of the same major, and the next
    version: int = ENGINE_MANIFEST_VERSION


def this_platform() -> str:
    """The operating system and processor that this runs on, as descriptions name them: "linux-x86_64"."""
    return f"{platform.system()}-{platform.machine()}".lower()


def json_path(engine: str | os.PathLike[str]) -> Path:
    """Where the description of an engine file lies: its whole name with .json behind."""
    return Path(f"{os.fspath(engine)}.json")


def write_engine(path: str | os.PathLike[str], data: bytes, described: EngineManifest) -> None:
    """Write an engine and its description, both or neither. Raises WriteError, and an older engine stays loadable.

    A reader that comes between the two renames sees a hash that doesn't fit and refuses.
    """
    if hashlib.sha256(data).hexdigest() != described.engine_sha256:
        raise ValueError("the description is of another engine")
    atomic_write_together({Path(path): data, json_path(path): to_json(described)})


def read_engine(path: str | os.PathLike[str]) -> tuple[bytes, EngineManifest]:
    """The engine's bytes, once their hash is known to be that of the description beside it. Raises EngineError."""
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise EngineError(f"{path}: cannot read the engine: {error.strerror or error}; check the path") from error
    described = read_description(path)
    if hashlib.sha256(data).hexdigest() != described.engine_sha256:
        raise EngineError(
            f"{path}: its SHA-256 is not the one in {json_path(path).name}: it was altered, cut short or replaced. An "
            f"engine is executable code, so it is not loaded; build it again: {described.rebuild}"
        )
    return data, described


def read_description(path: str | os.PathLike[str]) -> EngineManifest:
    """What the JSON beside an engine says. Raises EngineError where there is none, or one that isn't ours."""
    beside = json_path(path)
    try:
        text = beside.read_text(encoding="utf-8")
    except OSError as error:
        raise EngineError(
            f"{path}: cannot read its description {beside.name} ({error.strerror or error}); an engine is executable "
            f"code and is loaded only beside the description that its build wrote; {_BUILD}"
        ) from error
    except UnicodeDecodeError as error:
        raise EngineError(f"{beside}: not text ({error}); {_BUILD}") from error
    return from_json(text, str(beside))


def library_name(flavor: Flavor) -> str:
    """What the library of a flavor is called."""
    match flavor:
        case "tensorrt":
            return "TensorRT"
        case "rtx":
            return "TensorRT for RTX"
        case _:
            unknown_name(flavor, "flavor", Flavor)


def to_json(described: EngineManifest) -> str:
    check_manifest(described.manifest, "this engine's manifest")
    return json.dumps(dataclasses.asdict(described), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def from_json(text: str, source: str) -> EngineManifest:
    """The description in `text`; `source` names the file in messages. Raises EngineError naming the field."""
    try:
        fields: Any = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise EngineError(f"{source}: not JSON ({error}); {_BUILD}") from error
    if not isinstance(fields, dict):
        raise EngineError(f"{source}: {kind_of(fields)}, expected an object; {_BUILD}")
    version = fields.get("version")
    if version != ENGINE_MANIFEST_VERSION or isinstance(version, bool):
        raise EngineError(
            f"{source}: version {version!r}, this toolkit reads version {ENGINE_MANIFEST_VERSION}; {_BUILD}"
        )
    try:
        described = record_from_dict(EngineManifest, fields, source)
        check_manifest(described.manifest, source)
    except (RecordError, ManifestError) as error:
        raise EngineError(f"{error}; {_BUILD}") from error
    if not described.profiles:
        raise EngineError(f"{source}: it names no profile, expected at least one; {_BUILD}")
    # Descriptions of before name the script, which only a clone has.
    return dataclasses.replace(described, rebuild=re.sub(r"^python export/to_trt\.py\b", TO_TRT, described.rebuild))


_BUILD = f"build the engine again: {TO_TRT} MODEL.onnx"
