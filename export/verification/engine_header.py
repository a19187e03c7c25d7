"""The header of an engine's file, compared with the engine's description; needs no GPU.

The layout was read from files of TensorRT for RTX; it is not documented. The header of standard engines is unknown.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from runtime.backends.engine_file import EngineManifest

MAGIC = b"vtrt"
_LAYOUT = struct.Struct("<4s12xQ4B4xI")  # magic, 12 unknown bytes, size, version, 4 unknown bytes, GPUs
# Bit of the header's mask → compute capability.
_CAPABILITIES = ("7.5", "8.0", "8.6", "8.9", "12.0", "12.1")


class Header(NamedTuple):
    """The known fields of the header."""

    magic: bytes
    size: int  # bytes of the whole file
    version: str  # "1.7.1.116"
    compute_capabilities: tuple[str, ...]


def read_header(data: bytes) -> Header | None:
    """The header of an engine's bytes; None where there are fewer bytes than a header has."""
    if len(data) < _LAYOUT.size:
        return None
    magic, size, *version, mask = _LAYOUT.unpack_from(data)
    capabilities = [name for bit, name in enumerate(_CAPABILITIES) if mask >> bit & 1]
    capabilities += [f"unknown bit {bit}" for bit in range(len(_CAPABILITIES), 32) if mask >> bit & 1]
    return Header(magic, size, ".".join(map(str, version)), tuple(capabilities))


def header_problems(data: bytes, described: EngineManifest) -> list[str]:
    """How an engine of TensorRT for RTX contradicts its description: one line for each difference of the header."""
    header = read_header(data)
    if header is None or header.magic != MAGIC:
        start = data[:4].decode("ascii", "backslashreplace")
        return [f"the file starts with {start!r}, expected {MAGIC.decode()!r}: not an engine of TensorRT for RTX"]
    problems = []
    if header.size != len(data):
        problems.append(f"its header says {header.size:,} bytes, the file has {len(data):,}")
    if header.version != described.library_version:
        problems.append(f"built by version {header.version}, its description says {described.library_version}")
    if set(header.compute_capabilities) != set(described.compute_capabilities):
        problems.append(
            f"built for {', '.join(header.compute_capabilities) or 'no GPU'}, its description says "
            f"{', '.join(described.compute_capabilities)}"
        )
    return problems
