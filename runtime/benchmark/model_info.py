"""The deployed model that was measured, and what ran it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..detector import Detector
from ..manifest import InputShapes, Precision, Preprocess


@dataclass(frozen=True)
class ModelInfo:
    """A deployed model, and what runs it."""

    path: str
    sha256: str
    bytes: int
    backend: str  # library, version, device, threads
    recipe: str
    precision: Precision
    classes: int
    inputs: InputShapes
    preprocess: Preprocess
    checkpoint_sha256: str


def describe_model(path: Path | str, sha256: str, detector: Detector) -> ModelInfo:
    """The deployed model that a detector runs; `sha256` is of the file at `path`. A served model has 0 bytes here."""
    manifest = detector.manifest
    return ModelInfo(
        path=str(path),
        sha256=sha256,
        bytes=path.stat().st_size if isinstance(path, Path) else 0,
        backend=detector.backend.description,
        recipe=manifest.recipe,
        precision=manifest.precision,
        classes=len(manifest.classes),
        inputs=manifest.inputs,
        preprocess=manifest.preprocess,
        checkpoint_sha256=manifest.checkpoint_sha256,
    )
