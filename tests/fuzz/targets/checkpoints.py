"""Checkpoints of this toolkit and of others: damaged bytes, and content that torch reads but that makes no sense."""

from __future__ import annotations

import functools
import io
import json
from pathlib import Path
from typing import Any

from hypothesis import strategies as st
from hypothesis.strategies import DrawFn

from ..mutation import as_json, changed, damaged, odd_values
from ..target import Target, require
from .records import require_manifest


@functools.cache
def _content(path: Path) -> dict[str, Any]:
    import torch

    found: dict[str, Any] = torch.load(path, weights_only=True)
    return found


def _saved(content: Any) -> bytes:
    import torch

    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


@st.composite
def _inputs(draw: DrawFn, path: Path) -> dict[str, bytes]:
    if draw(st.integers(0, 2)) == 2:
        return {"c.pt": draw(damaged(path.read_bytes()))}
    content = dict(_content(path))
    match draw(st.sampled_from(("config", "config", "config", "tensor", "tensor", "field", "classes"))):
        case "config":
            content["config"] = as_json(draw(changed(json.loads(content["config"]), 2)))
        case "tensor":
            content["model"] = draw(_tensors(content["model"]))
        case "field":
            name = draw(st.sampled_from(sorted(content)))
            if draw(st.booleans()):
                content[name] = draw(odd_values)
            else:
                del content[name]
        case "classes":
            name = draw(st.sampled_from(("classes", "category_ids")))
            content[name] = draw(changed(content[name], 2))
    return {"c.pt": _saved(content)}


@st.composite
def _tensors(draw: DrawFn, state: dict[str, Any]) -> dict[str, Any]:
    """A state dict with one tensor changed: a number, the type, the shape, the name, or all of it."""
    import torch

    found = dict(state)
    name = draw(st.sampled_from(sorted(found)))
    value = found[name].clone()
    match draw(st.sampled_from(("number", "nan", "type", "shape", "name", "drop", "object", "sparse"))):
        case "number" if value.is_floating_point() and value.numel():
            value.view(-1)[draw(st.integers(0, value.numel() - 1))] += 1
        case "nan" if value.is_floating_point():
            value.view(-1)[0] = draw(st.sampled_from((float("nan"), float("inf"), -float("inf"))))
        case "type":
            value = value.to(draw(st.sampled_from((torch.float16, torch.int8, torch.complex64, torch.float64))))
        case "shape":
            value = value.unsqueeze(0)
        case "name":
            found[draw(st.sampled_from(("x", "", "head", name + ".0")))] = found.pop(name)
            return found
        case "drop":
            del found[name]
            return found
        case "object":
            value = draw(odd_values)
        case "sparse":
            value = value.to_sparse()
    found[name] = value
    return found


def _read(folder: Path, seeds: Path) -> str:
    import torch

    from train.checkpoint import load_detector, read_checkpoint

    whole = _content(seeds / "checkpoint.pt")
    path = folder / "c.pt"
    content = read_checkpoint(path)
    require(set(content.model) == set(whole["model"]), "other tensors than the checkpoint was saved with")
    for name, tensor in content.model.items():
        require(isinstance(tensor, torch.Tensor), f"{name} is no tensor")
        require(torch.equal(tensor, whole["model"][name]), f"{name} has other numbers than were saved")
    loaded = load_detector(path)
    names, ids = loaded.classes
    require(all(isinstance(name, str) for name in names) and all(type(i) is int for i in ids), "types of classes")
    require(len(names) == len(ids) == len(set(ids)) >= 1, f"{len(names)} classes and {len(ids)} ids")
    for name, tensor in loaded.detector.state_dict().items():
        require(not tensor.is_floating_point() or bool(torch.isfinite(tensor).all()), f"{name} is not finite")
    require_manifest(loaded.config, names, ids)
    return f"step {loaded.step}"


@st.composite
def _foreign_inputs(draw: DrawFn, path: Path) -> dict[str, bytes]:
    """The weights under the names and in the wrapping of other projects."""
    state = dict(_content(path)["model"])
    kept = dict(list(state.items())[: draw(st.integers(0, len(state)))])
    prefix = draw(st.sampled_from(("", "module.", "backbone.", "model.", "bbox_head.")))
    renamed = {prefix + name: value for name, value in kept.items()}
    wrapped = draw(st.sampled_from(("state_dict", "model", "bare", "odd")))
    content: Any = {"state_dict": renamed, "meta": draw(odd_values)} if wrapped == "state_dict" else renamed
    if wrapped == "model":
        content = {"model": renamed, "epoch": draw(odd_values)}
    if wrapped == "odd":
        content = draw(odd_values)
    data = _saved(content)
    return {"f.pth": draw(damaged(data)) if draw(st.integers(0, 3)) == 0 else data}


def _read_foreign(folder: Path, seeds: Path) -> str:
    from train.pretrained.convert import convert

    return str(convert(folder / "f.pth", None).dialect.name)


def _read_settings(folder: Path, seeds: Path) -> str:
    from runtime.report.training import read_settings

    found = read_settings(folder / "c.pt")
    require(isinstance(found, dict), "settings that are no object")
    return f"{len(found)} settings"


TARGETS = {
    "settings of a checkpoint": Target(lambda seeds: _inputs(seeds / "checkpoint.pt"), _read_settings, 0.5, 15),
    "checkpoints": Target(lambda seeds: _inputs(seeds / "checkpoint.pt"), _read, 2, 40),
    "foreign checkpoints": Target(lambda seeds: _foreign_inputs(seeds / "checkpoint.pt"), _read_foreign, 0.5, 15),
}
