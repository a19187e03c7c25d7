"""The network as it will be served: its file, and inputs, outputs and shapes from the graph or the engine itself."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import onnx

from runtime.backends.engine_file import SUFFIXES as ENGINE_SUFFIXES
from runtime.backends.engine_file import EngineError, EngineManifest, Tensor, json_path, read_engine, to_json
from runtime.command_names import TO_ONNX
from runtime.errors import UserError
from runtime.manifest import Manifest

from ..onnx_model.network import parse_deployed, read_deployed


@dataclasses.dataclass(frozen=True)
class Network:
    """A deployed file that was read and checked."""

    path: Path
    content: bytes  # as they were read: by the time that they are written, another file may have the name
    manifest: Manifest  # its batches are those that the file takes: of an engine, what all profiles take
    tensors: tuple[Tensor, ...]  # in the file's order; −1 stands for any size
    engine: EngineManifest | None  # of a TensorRT engine

    @property
    def file_name(self) -> str:
        """The file's name in a repository: one that the server's Python can open, whatever its own is."""
        return f"model{self.path.suffix.lower()}"

    @property
    def files(self) -> dict[str, bytes]:
        """What the toolkit's own backend needs, by name: the file, and beside an engine its description."""
        files = {self.file_name: self.content}
        if self.engine is None:
            return files
        return files | {json_path(self.file_name).name: to_json(self.engine).encode()}


def read_network(path: Path) -> Network:
    """Read an exported file or an engine. Raises ModelError, ManifestError, EngineError, UserError."""
    suffix = path.suffix.lower()
    if suffix == ".onnx":
        content = read_deployed(path)
        model, manifest = parse_deployed(content, path)
        return Network(path, content, manifest, onnx_tensors(model), None)
    if suffix in ENGINE_SUFFIXES:
        content, engine = read_engine(path)
        return Network(path, content, _with_its_batches(engine, path), engine.tensors, engine)
    raise UserError(
        f"{path}: expected an exported file (.onnx) or an engine (.engine); export one: {TO_ONNX} CHECKPOINT"
    )


def _with_its_batches(engine: EngineManifest, path: Path) -> Manifest:
    """The manifest of an engine's graph with the batches that every profile takes: --batch can narrow the graph's."""
    manifest = engine.manifest
    least = max(profile.least[0] for profile in engine.profiles)
    most = min(profile.most[0] for profile in engine.profiles)
    if least > most:
        raise EngineError(f"{path}: no batch is in all of its profiles; build it with one --batch: {engine.rebuild}")
    inputs = dataclasses.replace(manifest.inputs, batch_min=least, batch_max=most)
    return dataclasses.replace(manifest, inputs=inputs)


def onnx_tensors(model: onnx.ModelProto) -> tuple[Tensor, ...]:
    """Inputs and outputs of an ONNX graph, symbolic sizes as −1."""
    initializers = {value.name for value in model.graph.initializer}
    found = []
    for kind, values in (("input", model.graph.input), ("output", model.graph.output)):
        for value in values:
            if value.name not in initializers:
                tensor = value.type.tensor_type
                shape = tuple(axis.dim_value if axis.HasField("dim_value") else -1 for axis in tensor.shape.dim)
                name = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name
                found.append(Tensor(value.name, _KINDS[kind], name, shape))
    return tuple(found)


_KINDS: dict[str, Any] = {"input": "input", "output": "output"}
