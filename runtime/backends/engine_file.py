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
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

from ..bounds import Batch, Bounds, Count, Items, Name, Pattern, Sha256, Side
from ..command_names import TO_TRT
from ..errors import UserError
from ..files import as_utf8, atomic_write_together
from ..json_file import JsonError, parse_json
from ..manifest import Manifest
from ..names import unknown_name
from ..records import RecordError, check_record, kind_of, plain, record_from_dict, shown

ENGINE_MANIFEST_VERSION = 1
SUFFIXES = (".engine", ".plan", ".trt")

Flavor = Literal["tensorrt", "rtx"]
ComputeCapability = Annotated[str, Pattern(r"\d{1,3}\.\d{1,3}", "a compute capability such as 8.6")]


class EngineError(UserError):
    """An engine that is missing, was altered, or lacks its description."""


@dataclasses.dataclass(frozen=True)
class Profile:
    """An optimization profile: the range of `images` as (batch, height, width), and the shape it was tuned for."""

    least: tuple[Batch, Side, Side]
    best: tuple[Batch, Side, Side]
    most: tuple[Batch, Side, Side]

    def conflicts(self) -> Iterator[tuple[str, str]]:
        """See `bounds.Conflicts`."""
        if not all(low <= n <= high for low, n, high in zip(self.least, self.best, self.most, strict=True)):
            yield "best", f"sizes from {self.least} to {self.most}"

    def takes(self, batch: int, height: int, width: int) -> bool:
        """Whether images of this shape are within the profile's range."""
        shape = (batch, height, width)
        return all(low <= n <= high for low, n, high in zip(self.least, shape, self.most, strict=True))


@dataclasses.dataclass(frozen=True)
class Tensor:
    """One input or output of the engine."""

    name: Name
    kind: Literal["input", "output"]
    dtype: Name  # NumPy's name
    # −1: depends on the batch or canvas.
    shape: Annotated[tuple[Annotated[int, Bounds(-1, 10**9)], ...], Items(0, 8)]


@dataclasses.dataclass(frozen=True)
class EngineManifest:
    """The description beside an engine, as it stands in the JSON."""

    manifest: Manifest  # of the graph that the engine was built from
    flavor: Flavor
    library_version: Name  # of TensorRT or TensorRT for RTX, in full
    # Of the GPUs that run it, such as "8.6".
    compute_capabilities: Annotated[tuple[ComputeCapability, ...], Items(1, 100)]
    platform: Name  # such as "linux-x86_64"
    engine_sha256: Sha256
    onnx_sha256: Sha256  # of the ONNX file's bytes
    profiles: Annotated[tuple[Profile, ...], Items(1, 1000)]
    tensors: Annotated[tuple[Tensor, ...], Items(0, 1000)]
    rebuild: Name  # the command that builds it again, without folders
    layers: dict[Name, Count]  # convolutions by precision, counted by TensorRT's inspector; empty: unknown
    version_compatible: bool = False  # later library versions run it, up to the next major
    version: Annotated[int, Bounds(ENGINE_MANIFEST_VERSION, ENGINE_MANIFEST_VERSION)] = ENGINE_MANIFEST_VERSION


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
        text = beside.read_bytes()
    except OSError as error:
        raise EngineError(
            f"{path}: cannot read its description {beside.name} ({error.strerror or error}); an engine is executable "
            f"code and is loaded only beside the description that its build wrote; {_BUILD}"
        ) from error
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
    """A description as JSON text. Raises RecordError for a description with invalid values."""
    check_record(described, "this engine's description")
    return as_utf8(json.dumps(plain(described), indent=2, ensure_ascii=False, allow_nan=False)) + "\n"


def from_json(text: str | bytes, source: str) -> EngineManifest:
    """The description in JSON text; `source` names the file in messages. Raises EngineError that names the field."""
    try:
        fields = parse_json(text, f"{source}: the description")
    except JsonError as error:
        raise EngineError(f"{error}; {_BUILD}") from error
    if not isinstance(fields, dict):
        raise EngineError(f"{source}: {kind_of(fields)}, expected an object; {_BUILD}")
    version = fields.get("version")
    if version != ENGINE_MANIFEST_VERSION or isinstance(version, bool):
        raise EngineError(
            f"{source}: version {shown(version)}, this toolkit reads version {ENGINE_MANIFEST_VERSION}; {_BUILD}"
        )
    try:
        described = record_from_dict(EngineManifest, fields, source)
    except RecordError as error:
        raise EngineError(f"{error}; {_BUILD}") from error
    # Older descriptions name the script, which only a clone of the repository has.
    return dataclasses.replace(described, rebuild=re.sub(r"^python export/to_trt\.py\b", TO_TRT, described.rebuild))


_BUILD = f"build the engine again: {TO_TRT} MODEL.onnx"
