"""What a model is on the nodes of a cluster: the machine that starts a run may have neither its GPU nor its library."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from ..detector import Detector
from ..manifest import Manifest
from ..model_spec import ModelSpec, model_summary, open_model_with_sha256


@dataclass(frozen=True)
class ClusterModel:
    """A model, and how each actor opens it."""

    spec: ModelSpec
    options: Mapping[str, Any]  # fields of `BackendOptions`

    def open(self) -> tuple[Detector, str]:
        """A detector, and the SHA-256 of the model's file. Raises BackendError, ManifestError, EngineError."""
        return open_model_with_sha256(self.spec, **self.options)


@dataclass(frozen=True)
class ModelFacts:
    """What a node found when it opened the model."""

    manifest: Manifest
    sha256: str
    summary: str  # as `model_summary`
    backend: str  # its description


def describe_model(model: ClusterModel) -> ModelFacts:
    """Open the model on this node and say what it is. Raises BackendError, ManifestError, EngineError."""
    detector, sha256 = model.open()
    with detector:
        return ModelFacts(detector.manifest, sha256, model_summary(detector, model.spec), detector.backend.description)


def on_any_node(spec: ModelSpec) -> ModelSpec:
    """The spec with an absolute path, since a node's working folder is another."""
    return spec if isinstance(spec.path, str) else replace(spec, path=spec.path.absolute())
