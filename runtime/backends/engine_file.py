"""A TensorRT engine and the description beside it: `NAME.engine` and `NAME.engine.json`.

An engine is executable code for one library version and some kinds of GPU. It can be inspected only after it was
deserialized, and deserializing a foreign engine may run anything. Therefore the description holds everything that must
be known before, and the SHA-256 of the engine's bytes.
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
from ..files import as_utf8, atomic_write_together
from ..manifest import Manifest, ManifestError
from ..manifest import check as check_manifest
from ..names import unknown_name
from ..records import RecordError, kind_of, record_from_dict

ENGINE_MANIFEST_VERSION = 1
SUFFIXES = (".engine", ".plan", ".trt")

Flavor = Literal["tensorrt", "rtx"]


class EngineError(UserError):
    """An engine that is missing, was altered, or lacks its description."""


@dataclasses.dataclass(frozen=True)
class Profile:
    """An optimization profile: the range of `images` as (batch, height, width), and the shape it was tuned for."""

    least: tuple[int, int, int]
    best: tuple[int, int, int]
    most: tuple[int, int, int]

    def takes(self, batch: int, height: int, width: int) -> bool:
        """Whether images of this shape are within the profile's range."""
        shape = (batch, height, width)
        return all(low <= n <= high for low, n, high in zip(self.least, shape, self.most, strict=True))


@dataclasses.dataclass(frozen=True)
class Tensor:
    """One input or output of the engine."""

    name: str
    kind: Literal["input", "output"]
    dtype: str  # NumPy's name
    shape: tuple[int, ...]  # −1: depends on the batch or canvas


@dataclasses.dataclass(frozen=True)
class EngineManifest:
    """The description beside an engine, as it stands in the JSON."""

    manifest: Manifest  # of the graph that the engine was built from
    flavor: Flavor
    library_version: str  # of TensorRT or TensorRT for RTX, in full
    compute_capabilities: tuple[str, ...]  # of the GPUs that run it, such as "8.6"
    platform: str  # such as "linux-x86_64"
    engine_sha256: str
    onnx_sha256: str  # of the ONNX file's bytes
    profiles: tuple[Profile, ...]
    tensors: tuple[Tensor, ...]
    rebuild: str  # the command that builds it again, without folders
    layers: dict[str, int]  # convolutions by precision, counted by TensorRT's inspector; empty: unknown
    version_compatible: bool = False  # later library versions run it, up to the next major
    version: int = ENGINE_MANIFEST_VERSION


def this_platform() -> str:
    """This operating system and processor as descriptions name them, such as "linux-x86_64"."""
    return f"{platform.system()}-{platform.machine()}".lower()


def json_path(engine: str | os.PathLike[str]) -> Path:
    """The path of an engine's description: the engine's whole name followed by .json."""
    return Path(f"{os.fspath(engine)}.json")


def write_engine(path: str | os.PathLike[str], data: bytes, described: EngineManifest) -> None:
    """Write an engine and its description, both or neither. On WriteError an older engine stays loadable.

    A reader between the two renames finds a hash that doesn't match and refuses the engine.
    """
    if hashlib.sha256(data).hexdigest() != described.engine_sha256:
        raise ValueError("the description is of another engine")
    atomic_write_together({Path(path): data, json_path(path): to_json(described)})


def read_engine(path: str | os.PathLike[str]) -> tuple[bytes, EngineManifest]:
    """An engine's bytes, verified against the hash in its description, and the description. Raises EngineError."""
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise EngineError(f"{path}: cannot read the engine: {error.strerror or error}; check the path") from error
    described = read_description(path)
    if hashlib.sha256(data).hexdigest() != described.engine_sha256:
        raise EngineError(
            f"{path}: its SHA-256 is not the one in {json_path(path).name}: the file was altered, truncated or "
            f"replaced. An engine is executable code, so it is not loaded; build it again: {described.rebuild}"
        )
    return data, described


def read_description(path: str | os.PathLike[str]) -> EngineManifest:
    """The description beside an engine. Raises EngineError where it is missing or not one of this toolkit."""
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
    """The name of a flavor's library for messages."""
    match flavor:
        case "tensorrt":
            return "TensorRT"
        case "rtx":
            return "TensorRT for RTX"
        case _:
            unknown_name(flavor, "flavor", Flavor)


def to_json(described: EngineManifest) -> str:
    """A description as JSON text. Raises ManifestError for a graph manifest with invalid values."""
    check_manifest(described.manifest, "this engine's manifest")
    return as_utf8(json.dumps(dataclasses.asdict(described), indent=2, ensure_ascii=False, allow_nan=False)) + "\n"


def from_json(text: str, source: str) -> EngineManifest:
    """The description in JSON text; `source` names the file in messages. Raises EngineError that names the field."""
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
        raise EngineError(f"{source}: no profile is named, expected at least one; {_BUILD}")
    # Older descriptions name the script, which only a clone of the repository has.
    return dataclasses.replace(described, rebuild=re.sub(r"^python export/to_trt\.py\b", TO_TRT, described.rebuild))


_BUILD = f"build the engine again: {TO_TRT} MODEL.onnx"
