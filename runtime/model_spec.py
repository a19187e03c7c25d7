"""Deployed models as commands take them: a file, and the backend that is asked for it alone (`model.onnx@openvino`)."""

from __future__ import annotations

import argparse
import os
from dataclasses import dataclass
from pathlib import Path

from .backends import BackendError
from .backends.options import BACKENDS, backend_options
from .detector import Detector
from .files import sha256_file


@dataclass(frozen=True)
class Given:
    path: Path
    backend: str | None  # None: what the command's options say

    def __str__(self) -> str:
        return str(self.path) if self.backend is None else f"{self.path}@{self.backend}"


def parse_given(text: str) -> Given:
    path, at, backend = text.rpartition("@")
    return Given(Path(path), backend) if at and backend in BACKENDS else Given(Path(text), None)


def open_given(given: Given, options: argparse.Namespace) -> Detector:
    """A detector by a command line that has `add_backend_arguments`. Raises BackendError."""
    chosen = backend_options(options)
    return Detector(given.path, **(chosen | {"backend": given.backend or chosen["backend"]}))


def open_hashed(given: Given, options: argparse.Namespace) -> tuple[Detector, str]:
    """As `open_given`, and the SHA-256 of the file that was opened. Raises BackendError where it changed meanwhile."""
    try:
        before = os.stat(given.path)
        sha256 = sha256_file(given.path)
    except OSError:
        return open_given(given, options), ""  # which says what is wrong with it
    detector = open_given(given, options)
    after = os.stat(given.path)
    if (before.st_ino, before.st_size, before.st_mtime_ns) != (after.st_ino, after.st_size, after.st_mtime_ns):
        detector.close()
        raise BackendError(f"{given.path}: the file was replaced while it was opened; run again")
    return detector, sha256


def describe(detector: Detector, path: Path | Given) -> str:
    manifest = detector.manifest
    what = f"{manifest.recipe}, {len(manifest.classes)} classes, {manifest.precision}"
    return f"{path}: {what}; {detector.backend.description}"
