"""What an ONNX file says of itself, read from its bytes: the manifest, the graph's hash, the number of classes.

An ONNX file is a message of protocol buffers: fields behind one another, each with a number, and the graph is one of
them (numbers: onnx/onnx.proto). The package onnx, which reads such files, belongs to the export and isn't installed
everywhere.
"""

from __future__ import annotations

import functools
import hashlib
import mmap
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from ..manifest import METADATA_KEY

_MODEL_GRAPH, _MODEL_METADATA = 7, 14
_GRAPH_VALUES = 13
_ENTRY_KEY, _ENTRY_VALUE = 1, 2
_VALUE_NAME, _TYPE, _TENSOR, _SHAPE, _DIMENSION, _SIZE = 1, 2, 1, 2, 1, 1
_MAPS = re.compile(rb"(class_logits|box_regression)_\d+")
_SIDES = 4  # numbers of a box code


class OnnxFacts(NamedTuple):
    """What was read from a file."""

    manifest: str | None  # JSON; None: the file has none, or it isn't text
    graph_sha256: str  # of everything but the metadata
    classes: int | None  # from the shapes of the network's dense maps; None: the file doesn't name them


def read_facts(path: Path) -> OnnxFacts | None:
    """What the file says; None for a file that isn't made of fields, such as a truncated one. Raises OSError.

    A file that didn't change since the last call isn't read again.
    """
    state = os.stat(path)
    return _read_facts(path, (state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns))


@functools.lru_cache(maxsize=64)
def _read_facts(path: Path, identity: tuple[int, ...]) -> OnnxFacts | None:
    with (
        open(path, "rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped,
        memoryview(mapped) as content,
    ):
        try:
            return _facts(content)
        except (IndexError, ValueError):
            return None


def _facts(content: memoryview) -> OnnxFacts:
    manifest, classes, digest = None, None, hashlib.sha256()
    for number, start, at, end in _fields(content):
        if number != _MODEL_METADATA:
            digest.update(content[start:end])
            if number == _MODEL_GRAPH:
                classes = _classes(content[at:end])
        elif _first(content[at:end], _ENTRY_KEY) == METADATA_KEY.encode():
            try:
                manifest = bytes(_first(content[at:end], _ENTRY_VALUE) or b"").decode()
            except UnicodeDecodeError:
                manifest = None
    return OnnxFacts(manifest, digest.hexdigest(), classes)


def _classes(graph: memoryview) -> int | None:
    """The channels of the class map are anchors × classes, and those of the box map are anchors × 4."""
    channels: dict[bytes, int] = {}
    for number, _, at, end in _fields(graph):
        if number == _GRAPH_VALUES:
            name = _first(graph[at:end], _VALUE_NAME)
            if name is not None and (found := _MAPS.fullmatch(name)) is not None:
                channels[found[1]] = _channels(graph[at:end])
    scores, codes = channels.get(b"class_logits", 0), channels.get(b"box_regression", 0)
    return scores * _SIDES // codes if codes and scores else None


def _channels(value: memoryview) -> int:
    """The second dimension of a value's shape; 0 where it isn't fixed."""
    shape = value
    for number in (_TYPE, _TENSOR, _SHAPE):
        inner = _first(shape, number)
        if inner is None:
            return 0
        shape = inner
    dimensions = [shape[at:end] for number, _, at, end in _fields(shape) if number == _DIMENSION]
    sizes = [_varint(dim, at)[0] for dim in dimensions[1:2] for number, _, at, _ in _fields(dim) if number == _SIZE]
    return sizes[0] if sizes else 0


def _first(message: memoryview, wanted: int) -> memoryview | None:
    """The content of the first field of this number; None where there is none."""
    return next((message[at:end] for number, _, at, end in _fields(message) if number == wanted), None)


def _fields(message: memoryview) -> Iterator[tuple[int, int, int, int]]:
    """Each field's number, and where it, its content and the next field begin.

    Raises ValueError or IndexError where the bytes aren't fields.
    """
    start = 0
    while start < len(message):
        key, at = _varint(message, start)
        kind = key & 7
        if kind == 0:  # a number
            end = _varint(message, at)[1]
        elif kind == 2:  # bytes: a text, a message, packed numbers
            length, at = _varint(message, at)
            end = at + length
        elif kind in (1, 5):  # a number of 8 or 4 bytes
            end = at + (8 if kind == 1 else 4)
        else:
            raise ValueError(f"a field of kind {kind}")
        if end > len(message):
            raise ValueError("a field goes beyond the end")
        yield key >> 3, start, at, end
        start = end


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    """A number in groups of seven bits, the lowest first, and where the next thing begins."""
    value = 0
    for shift in range(0, 70, 7):
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ValueError("a number of more than ten bytes")
