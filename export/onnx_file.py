"""Handling of ONNX models as data: what an exporter leaves in them, their hash, values inside made visible."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import onnx

INPUT_NAMES = ("images", "image_sizes")  # of the deployable graph


def keep_outputs(model: onnx.ModelProto, names: Sequence[str]) -> None:
    """Make `names` the model's only outputs, in place; the others stay values inside, under their names."""
    kept = [value for value in model.graph.output if value.name in names]
    inner = [value for value in model.graph.output if value.name not in names]
    assert [value.name for value in kept] == list(names)
    del model.graph.output[:]
    model.graph.output.extend(kept)
    model.graph.value_info.extend(inner)  # their types stay known


def with_outputs(model: onnx.ModelProto, names: Sequence[str]) -> onnx.ModelProto | None:
    """A copy that also returns the inner values `names`; None where it doesn't have them all."""
    inner = {value.name: value for value in model.graph.value_info}
    if not inner.keys() >= set(names):
        return None
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    copy.graph.output.extend(inner[name] for name in names)
    return copy


def strip(model: onnx.ModelProto) -> None:
    """Drop, in place, what the exporter notes for its own debugging: stack traces with the paths of this machine."""
    graph = model.graph
    for holder in (model, graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        holder.doc_string = ""
        del holder.metadata_props[:]


def graph_sha256(model: onnx.ModelProto) -> str:
    """SHA-256 of a model without its metadata, which carries this very sum."""
    bare = onnx.ModelProto()
    bare.CopyFrom(model)
    del bare.metadata_props[:]
    return hashlib.sha256(bare.SerializeToString(deterministic=True)).hexdigest()
