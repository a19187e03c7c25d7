"""What the functions of `export.api` return."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from runtime.backends.engine_file import EngineManifest
from runtime.manifest import Manifest

from .verification.checks import Verification


@dataclasses.dataclass(frozen=True)
class ExportedModel:
    """An ONNX file. It has the name that was asked for only if it passed its verification."""

    path: Path  # NAME.onnx, or NAME.failed.onnx where the verification failed
    size: int  # bytes
    manifest: Manifest
    verification: Verification

    @property
    def passed(self) -> bool:
        """Whether the file passed its verification and was published."""
        return self.verification.passed

    @property
    def table(self) -> str:
        """The comparisons as text, a line each."""
        return self.verification.table


@dataclasses.dataclass(frozen=True)
class BuiltEngine:
    """An engine with its description (NAME.engine.json) beside it."""

    path: Path
    size: int  # bytes
    manifest: EngineManifest
    verification: Verification | None  # of the ONNX file, where this call exported it; an engine itself: `verify`
