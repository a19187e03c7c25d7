"""Deployed models as commands name them: a file or an address.

A file may have a backend of its own (`model.onnx@openvino`). An address, `triton://host:port/model`, names a model that
a Triton Inference Server has.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .backends import BackendError
from .backends.options import BACKENDS
from .backends.triton.address import is_address
from .detector import Detector
from .files import sha256_file
from .terminal import printable


def model_path(text: str | os.PathLike[str]) -> Path | str:
    """A model's name as code uses it: the path of a file, or an address as it is."""
    return os.fspath(text) if is_address(text) else Path(text)


@dataclass(frozen=True)
class ModelSpec:
    """A deployed model, and the backend that was asked for with it."""

    path: Path | str  # a file, or the address of a served model
    backend: str | None = None  # a name of `BACKENDS`; None: the command's --backend decides

    def __str__(self) -> str:
        return str(self.path) if self.backend is None else f"{self.path}@{self.backend}"

    @classmethod
    def parse(cls, text: str) -> ModelSpec:
        """The spec that a command-line argument means. An unknown backend after @ is read as a part of the path."""
        path, at, backend = text.rpartition("@")
        return cls(Path(path), backend) if at and backend in BACKENDS else cls(model_path(text))


def open_model(spec: ModelSpec, **options: Any) -> Detector:
    """A detector that runs the model. `options` are fields of `BackendOptions`; the spec's backend takes precedence.

    Raises BackendError, ManifestError, EngineError.
    """
    return Detector(spec.path, **(options if spec.backend is None else options | {"backend": spec.backend}))


def open_model_with_sha256(spec: ModelSpec, **options: Any) -> tuple[Detector, str]:
    """As `open_model`, with the SHA-256 of the opened file; of a served model, its graph's.

    Raises BackendError if the file is replaced meanwhile.
    """
    if is_address(spec.path):
        served = open_model(spec, **options)
        return served, served.manifest.graph_sha256
    try:
        before = os.stat(spec.path)
        sha256 = sha256_file(spec.path)
    except OSError:
        return open_model(spec, **options), ""  # opening it raises the error that explains what is wrong
    detector = open_model(spec, **options)
    after = os.stat(spec.path)
    if (before.st_ino, before.st_size, before.st_mtime_ns) != (after.st_ino, after.st_size, after.st_mtime_ns):
        detector.close()
        raise BackendError(f"{spec.path}: the file was replaced while it was being opened; run again")
    return detector, sha256


def model_summary(detector: Detector, spec: ModelSpec | Path | str) -> str:
    """One line about an opened model: recipe, number of classes, precision, and the backend that runs it."""
    manifest = detector.manifest
    contents = f"{printable(manifest.recipe)}, {len(manifest.classes)} classes, {printable(manifest.precision)}"
    return f"{printable(spec)}: {contents}; {detector.backend.description}"
