"""What a program gives to `Detector`: arrays of every type and shape, bytes, files, pictures, and what is no image."""

from __future__ import annotations

import functools
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn

from runtime.detections import Detections
from runtime.detector import Detector
from runtime.errors import UserError

from ..mutation import odd_values
from ..target import Target, require

TYPES = ("uint8", "uint8", "int8", "int32", "int64", "uint16", "float16", "float32", "float64", "bool", "complex64")
SHAPES = (
    *((60, 80, 3), (60, 80, 3), (60, 80), (60, 80, 1), (60, 80, 4), (3, 60, 80), (1, 60, 80, 3), (2, 60, 80, 3)),
    *((0, 80, 3), (60, 0, 3), (1, 1, 3), (1, 500, 3), (500, 1, 3), (0,), (), (3,), (60, 80, 3, 1), (2000, 3, 3)),
)
VALUES = ("random", "zeros", "nan", "inf", "fraction")
KINDS = (
    "array",
    "array",
    "fortran",
    "strided",
    "reversed",
    "torch",
    "pillow",
    "bytes",
    "file",
    "path",
    "object",
    "text",
)
MODES = ("RGB", "L", "RGBA", "P", "CMYK", "1", "I;16", "F", "LA", "YCbCr", "HSV")
CALLS = ("one", "list", "stream", "nested", "mixed")


@st.composite
def _inputs(draw: DrawFn) -> dict[str, bytes]:
    said = {
        "kind": draw(st.sampled_from(KINDS)),
        "dtype": draw(st.sampled_from(TYPES)),
        "shape": draw(st.sampled_from(SHAPES)),
        "values": draw(st.sampled_from(VALUES)),
        "mode": draw(st.sampled_from(MODES)),
        "call": draw(st.sampled_from(CALLS)),
        "object": draw(odd_values),
    }
    return {"said.json": json.dumps(said).encode("utf-8", "surrogatepass")}


def _array(said: dict[str, Any]) -> np.ndarray:
    shape = tuple(said["shape"])
    made = np.random.default_rng(0).integers(0, 256, shape).astype(np.float64)
    fill = {"zeros": 0.0, "nan": np.nan, "inf": np.inf}.get(said["values"])
    if fill is not None:
        made = np.full(shape, fill)
    if said["values"] == "fraction":
        made = made / 255
    with np.errstate(invalid="ignore"):
        return made.astype(said["dtype"])


def _torch(array: np.ndarray) -> Any:
    import torch

    return torch.from_numpy(np.ascontiguousarray(array))


def _pillow(said: dict[str, Any]) -> Any:
    from PIL import Image

    return Image.fromarray(np.full((60, 80, 3), 90, np.uint8)).convert("RGB").convert("L").convert(said["mode"])


def _image(said: dict[str, Any], seeds: Path) -> Any:
    picture = seeds / "pictures" / "plain.jpg"
    ways: dict[str, Callable[[], Any]] = {
        "array": lambda: _array(said),
        "fortran": lambda: np.asfortranarray(_array(said)),
        "strided": lambda: _array(said)[::2] if said["shape"] else _array(said),
        "reversed": lambda: _array(said)[..., ::-1] if said["shape"] else _array(said),
        "torch": lambda: _torch(_array(said)),
        "pillow": lambda: _pillow(said),
        "bytes": picture.read_bytes,
        "file": lambda: io.BytesIO(picture.read_bytes()),
        "path": lambda: picture,
        "object": lambda: said["object"],
        "text": lambda: str(said["object"])[:300],
    }
    return ways[said["kind"]]()


@functools.cache
def _detector(model: Path) -> Detector:
    return Detector(model, backend="cpu", threads=1)


def _read(folder: Path, seeds: Path) -> str:
    said = json.loads((folder / "said.json").read_bytes())
    try:
        image = _image(said, seeds)
    except (ValueError, TypeError, OSError, KeyError):  # Pillow, torch or NumPy cannot make it
        return "no such object"
    detector = _detector(seeds / "red.onnx")
    good = np.zeros((60, 80, 3), np.uint8)
    match said["call"]:
        case "one":
            found: Any = detector(image)
        case "list":
            found = detector([image])
        case "stream":
            found = list(detector.stream([image]))
        case "nested":
            found = detector([[image]])
        case _:
            found = detector.detect([good, image])
    return _described(found)


def _described(found: Any) -> str:
    if isinstance(found, UserError):  # in a stream it takes an image's place
        raise found
    if isinstance(found, Detections):
        require(bool(np.isfinite(found.boxes).all() and np.isfinite(found.scores).all()), "not finite")
        require(len(found.boxes) == len(found.scores) == len(found.classes), "columns differ")
        return f"{len(found)} detections"
    members = list(found)
    for member in members:
        _described(getattr(member, "detections", member))
    return f"{len(members)} images"


TARGETS = {"images in memory": Target(lambda seeds: _inputs(), _read, 2, 80, ("torch", "PIL.Image"))}
