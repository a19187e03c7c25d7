"""Which decoder reads a model's images, and the note beside a model of what a decoder other than OpenCV does to its AP.

Training decodes with OpenCV. Another decoder gives other pixels, at least of large images, which OpenCV decodes at a
fraction of their size. So it is refused until `export.verify --decode` has measured its AP and written the note.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, Protocol, get_args

from .bounds import Fraction, Name, Positive, Sha256
from .command_names import VERIFY
from .errors import UserError
from .files import atomic_write
from .images.nvimgcodec import NvImageCodec
from .json_file import read_json_file
from .manifest import Manifest
from .names import unknown_name
from .records import record_from_dict

Decode = Literal["opencv", "nvimgcodec"]
DECODERS: tuple[Decode, ...] = get_args(Decode)


class _TakesOnDevice(Protocol):
    @property
    def device(self) -> int | None: ...


@dataclass(frozen=True)
class Measured:
    """A model's AP (0–1) on the same images, decoded by OpenCV and by another decoder."""

    decoder: Name
    version: Name
    place: Name  # "gpu" or "cpu"
    graph_sha256: Sha256  # the model's
    images: Positive
    ap_opencv: Fraction
    ap: Fraction


@dataclass(frozen=True)
class Note:
    """What the note beside a model holds."""

    measured: tuple[Measured, ...]


def open_decoder(name: Decode, device: int | None) -> NvImageCodec | None:
    """The decoder of a name, on the GPU of an index or (None) on the host. OpenCV's is None. Raises UserError."""
    match name:
        case "opencv":
            return None
        case "nvimgcodec":
            return NvImageCodec(device)
        case _:
            unknown_name(name, "decode", Decode)


def decoder_for(
    decode: Decode | NvImageCodec, model: str | os.PathLike[str] | None, manifest: Manifest, taker: _TakesOnDevice
) -> NvImageCodec | None:
    """The decoder that a detector was told to use, on the GPU on which its backend takes images; OpenCV's is None.

    An opened decoder is taken as it is. Raises UserError for one by name without a path of a model, or that was not
    measured with the model.
    """
    if isinstance(decode, NvImageCodec):
        return decode
    if decode == "opencv":
        return None
    decoder = open_decoder(decode, taker.device)
    if model is None:
        raise UserError(f"decode={decode!r} needs the model's path, or pass NvImageCodec(...), an opened decoder")
    if decoder is not None:
        require_measured(model, manifest, decoder)
    return decoder


def note_path(model: str | os.PathLike[str]) -> Path:
    """The note beside a model: its whole name followed by .decoders.json."""
    return Path(f"{os.fspath(model)}.decoders.json")


def read_note(model: str | os.PathLike[str]) -> list[Measured]:
    """All that was measured of a model's decoders; empty where there is no note. Raises UserError for a damaged one."""
    path = note_path(model)
    if not path.exists():
        return []
    try:
        return list(record_from_dict(Note, read_json_file(path, "note of decoders"), str(path)).measured)
    except UserError as error:
        raise UserError(f"{error}; delete the note of decoders and measure again: {VERIFY}") from error


def write_note(model: str | os.PathLike[str], measured: Measured) -> None:
    """Add to the note beside a model, in place of what was measured of the same decoder there. Raises UserError."""
    same = (measured.decoder, measured.place)
    kept = [one for one in read_note(model) if (one.decoder, one.place) != same]
    content = {"measured": [asdict(one) for one in (*kept, measured)]}
    atomic_write(note_path(model), json.dumps(content, indent=2) + "\n")


def require_measured(model: str | os.PathLike[str], manifest: Manifest, decoder: NvImageCodec) -> Measured:
    """What was measured of the decoder, in this version and place, with this graph. Raises UserError if nothing was."""
    wanted = (decoder.name, decoder.version, decoder.place, manifest.graph_sha256)
    for one in read_note(model):
        if (one.decoder, one.version, one.place, one.graph_sha256) == wanted:
            return one
    raise UserError(
        f"{model}: its AP with {decoder.name} {decoder.version} on the {decoder.place.upper()} was not measured, and "
        f"other pixels may cost some; measure it: {VERIFY} REFERENCE {model} --decode {decoder.name} "
        "--annotations JSON --images DIR"
    )
