"""What a Triton server says about a model: its configuration, metadata and index, by a client that only answers."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn

from runtime.backends.triton import client as triton
from runtime.backends.triton.address import TritonAddress

from ..mutation import json_files
from ..target import Target, require
from .records import check_manifest


def _answers(manifest: str) -> dict[str, Any]:
    config = {
        "name": "red",
        "max_batch_size": 16,
        "input": [
            {"name": "encoded", "data_type": "TYPE_STRING", "dims": ["1"]},
            {"name": "pixels", "data_type": "TYPE_UINT8", "dims": ["-1", "-1", "3"]},
        ],
        "output": [
            {"name": "boxes", "data_type": "TYPE_FP32", "dims": ["-1", "4"]},
            {"name": "scores", "data_type": "TYPE_FP32", "dims": ["-1"]},
            {"name": "classes", "data_type": "TYPE_INT32", "dims": ["-1"]},
            {"name": "labels", "data_type": "TYPE_STRING", "dims": ["-1"]},
        ],
        "parameters": {"manifest": {"string_value": manifest}},
    }
    return {
        "config": {"config": config},
        "metadata": {"name": "triton", "version": "2.51.0", "extensions": []},
        "index": {"models": [{"name": "red", "version": "1", "state": "UNAVAILABLE", "reason": "because"}]},
        "ready": True,
        "found": {"boxes": [[[1.0, 2.0, 3.0, 4.0]]], "scores": [[0.5]], "classes": [[0]]},
    }


@st.composite
def _inputs(draw: DrawFn, manifest: str) -> dict[str, bytes]:
    valid = _answers(manifest)
    if draw(st.integers(0, 2)) == 2:
        valid["ready"] = False
    return {"answers.json": draw(json_files(valid, 2))}


class _Client:
    """Answers as tritonclient does, with what stands in the input."""

    def __init__(self, said: dict[str, Any]) -> None:
        self._said = said

    def is_server_live(self, **_: object) -> bool:
        return True

    def is_model_ready(self, *_: object, **__: object) -> Any:
        return self._said.get("ready")

    def get_model_config(self, *_: object, **__: object) -> Any:
        return self._said.get("config")

    def get_server_metadata(self, **_: object) -> Any:
        return self._said.get("metadata")

    def get_model_repository_index(self, **_: object) -> Any:
        return self._said.get("index")

    def infer(self, *_: object, **__: object) -> Any:
        return self

    def as_numpy(self, name: str) -> np.ndarray | None:
        kinds = {"boxes": np.float32, "scores": np.float32, "classes": np.int32}
        found = self._said.get("found")
        try:
            return np.array(found[name], kinds[name])
        except (TypeError, ValueError, KeyError, OverflowError, IndexError):
            return None  # as tritonclient for an output that the answer lacks

    def close(self) -> None:
        pass


def _read(folder: Path, seeds: Path) -> str:
    try:
        said = json.loads((folder / "answers.json").read_bytes())
    except (ValueError, RecursionError):
        return "no JSON, which the library reads"
    if not isinstance(said, dict):
        return "no answers"
    import tritonclient.grpc as library

    made = ModuleType("answers")
    made.__dict__.update(vars(library))
    made.InferenceServerClient = lambda *_, **__: _Client(said)  # type: ignore[attr-defined]
    before = sys.modules["tritonclient.grpc"], sys.modules["tritonclient"].grpc
    sys.modules["tritonclient.grpc"] = sys.modules["tritonclient"].grpc = made  # type: ignore[attr-defined]
    try:
        opened = triton.TritonClient(TritonAddress.parse("triton://localhost:8001/red"))
        check_manifest(opened.served.manifest)
        found = opened.infer_pixels(np.zeros((4, 5, 3), np.uint8))
        opened.close()
    finally:
        sys.modules["tritonclient.grpc"], sys.modules["tritonclient"].grpc = before  # type: ignore[attr-defined]
    count = found.boxes.shape[0] if found.boxes.ndim == 2 else -1
    shapes = found.boxes.shape, found.scores.shape, found.classes.shape
    require(shapes == ((count, 4), (count,), (count,)), f"detections of the shapes {shapes}")
    require(bool(np.isfinite(found.boxes).all() and np.isfinite(found.scores).all()), "not finite")
    known = len(opened.served.manifest.classes)
    require(bool(((found.classes >= 0) & (found.classes < known)).all()), f"classes {found.classes} of {known}")
    return f"{count} detections by {opened.served.server[:40]}"


TARGETS = {
    "a Triton server's answers": Target(
        lambda seeds: _inputs((seeds / "manifest.json").read_text(encoding="utf-8")), _read, 1, 40
    )
}
