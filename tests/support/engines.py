"""Engines of the stand-in on disk, and images for them."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from runtime.backends.engine_file import EngineManifest, Profile, Tensor, this_platform, write_engine
from runtime.detections import RawOutputs
from runtime.manifest import InputShapes

from .fakes import manifest_with
from .standin import network
from .standin.driver import POISON
from .standin.install import StandIn
from .standin.trt_engine import engine_bytes

SMALL = Profile((1, 32, 32), (4, 64, 64), (8, 96, 96))
WIDE = Profile((1, 64, 128), (2, 64, 192), (4, 128, 256))
MANIFEST = manifest_with(inputs=InputShapes(1, 8, 32, 128, 32, 256))


def write_standin_engine(
    folder: Path,
    stand_in: StandIn,
    profiles: tuple[Profile, ...] = (SMALL, WIDE),
    data: bytes | None = None,
    **changes: Any,
) -> Path:
    """An engine and its description, for the library that the stand-in is. `changes` are to the description."""
    if data is None:
        host_code = changes.get("version_compatible", False)
        data = engine_bytes([dataclasses.astuple(profile) for profile in profiles], host_code=host_code)
    kinds = dict.fromkeys(network.INPUTS, "input") | dict.fromkeys(network.OUTPUTS, "output")
    described = EngineManifest(
        manifest=MANIFEST,
        flavor="rtx" if stand_in.names.startswith("rtx") else "tensorrt",
        library_version=stand_in.version,
        compute_capabilities=("8.0", "8.6"),
        platform=this_platform(),
        engine_sha256=hashlib.sha256(data).hexdigest(),
        onnx_sha256="2" * 64,
        profiles=profiles,
        tensors=tuple(
            Tensor(name, kinds[name], np.dtype(dtype).name, (-1,))  # type: ignore[arg-type]
            for name, dtype in (network.INPUTS | network.OUTPUTS).items()
        ),
        rebuild="python -m export.to_trt red.onnx",
        layers={},
    )
    path = folder / "red.engine"
    write_engine(path, data, dataclasses.replace(described, **changes))
    return path


def feed(batch: int, height: int, width: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Canvases with a red rectangle on most images, and a blue pixel (NMS not exact) on some."""
    random = np.random.default_rng(seed)
    images = random.integers(0, 180, (batch, height, width, 3), dtype=np.uint8)
    sizes = np.stack([random.integers(16, height + 1, batch), random.integers(16, width + 1, batch)], 1).astype(
        np.int32
    )
    for image in images:
        kind = random.random()
        if kind < 0.8:
            y, x = random.integers(0, 12, 2)
            image[y : y + 9, x : x + 7] = (random.integers(210, 256), 0, 0)
        if kind > 0.6:
            image[1, 1, 2] = 255
    return images, sizes


def assert_same(given: RawOutputs, wanted: RawOutputs) -> None:
    """Raise AssertionError unless both have the same types and values in every output."""
    for field in dataclasses.fields(RawOutputs):
        a, b = getattr(given, field.name), getattr(wanted, field.name)
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b, err_msg=field.name)


def poison_of(outputs: RawOutputs) -> list[str]:
    """Names of outputs that hold what the stand-in puts where a copy hasn't been waited for."""
    arrays = {field.name: getattr(outputs, field.name) for field in dataclasses.fields(RawOutputs)}
    word = int.from_bytes(bytes([POISON] * 4), "little")
    return [name for name, array in arrays.items() if (np.ascontiguousarray(array).view(np.uint32) == word).any()]
