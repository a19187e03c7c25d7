"""Conversion of a foreign checkpoint: recognise its dialect, rename its tensors, and check that nothing is missing.

Only tensors and plain values are read: a file that would run code when unpickled is refused.
"""

from __future__ import annotations

import difflib
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from runtime.errors import UserError

from ..build import build_detector
from ..checkpoint import Classes
from ..config import Config, Model
from ..geometry.anchors import anchors_per_cell
from ..integrity import DamagedError, check_finite
from ..torch_files import load_plain, why_not
from .dialects import DIALECTS, Dialect, State, backbone_name, recognise, rename


class ForeignError(UserError):
    """A file that isn't a readable checkpoint of a known dialect."""


class Converted(NamedTuple):
    """A foreign checkpoint, converted: its configuration, classes, and a state dict for `build_detector`'s network."""

    dialect: Dialect
    config: Config
    classes: Classes
    state: State


def convert(path: Path, dialect_name: str | None = None) -> Converted:
    """Convert a foreign checkpoint; its dialect is recognised unless `dialect_name` is given.

    Raises ForeignError, naming keys, for a file that can't be read safely, has no known dialect, or doesn't fit it.
    """
    theirs, class_names = read_foreign(path)
    dialect = _dialect(theirs, dialect_name, path)
    state = _renamed(theirs, dialect, path)
    model = _completed(state, dialect, path)
    per_cell = anchors_per_cell(model.anchors)
    if "head.class_logits.weight" not in state:
        raise ForeignError(f"{path} is incomplete: it has no class convolution, from which the classes are counted")
    state = _joined_scales(state)
    num_classes = state["head.class_logits.weight"].shape[0] // per_cell
    config = Config(recipe=dialect.name, preprocess=dialect.preprocess, model=model, thresholds=dialect.thresholds)
    state = _checked(state, config, num_classes, path)
    return Converted(dialect, config, _classes(num_classes, class_names), state)


def read_foreign(path: Path) -> tuple[State, tuple[str, ...]]:
    """The tensors of a checkpoint file by key, and the names of its classes, if it has any.

    Nothing in the file is executed. Raises ForeignError for a file with anything but tensors and plain values.
    """
    if not path.is_file():
        raise ForeignError(f"no file {path}: give a checkpoint that another implementation saved")
    try:
        content: Any = load_plain(path)
    except Exception as error:  # torch raises a dozen types for a damaged, foreign or malicious file
        raise ForeignError(
            f"{path} can't be read safely (truncated, no torch file, or with more than tensors and plain values in it, "
            f"which could run code): {why_not(error)}. Download it again, or save its state dict alone with torch.save"
        ) from error
    names: Any = ()
    if isinstance(content, dict) and isinstance(content.get("meta"), dict):
        meta = content["meta"]
        inner = meta.get("dataset_meta")
        names = meta.get("CLASSES") or (inner.get("classes") if isinstance(inner, dict) else None) or ()
    for wrapper in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
            break
    if not isinstance(content, dict) or not content or not all(isinstance(v, Tensor) for v in content.values()):
        raise ForeignError(
            f"{path} holds no state dict (keys to tensors, alone or under 'state_dict' or 'model'): give one that does"
        )
    state = {str(key).removeprefix("module."): value for key, value in content.items()}
    try:
        check_finite(state)
    except DamagedError as error:
        raise ForeignError(f"{path}: {error}; it is damaged, or its training diverged: download it again") from error
    readable = isinstance(names, list | tuple) and all(isinstance(n, str) for n in names)
    return state, tuple(names) if readable else ()


def dialect_named(name: str) -> Dialect:
    """The dialect of a name. Raises ForeignError for an unknown name, with the nearest one."""
    names: list[str] = [dialect.name for dialect in DIALECTS]
    if name in names:
        return DIALECTS[names.index(name)]
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.3)
    hint = f", did you mean {near[0]}?" if near else ""
    raise ForeignError(f"no dialect {name!r}{hint} (there are {', '.join(names)})")


def _dialect(state: State, name: str | None, path: Path) -> Dialect:
    if name is None:
        names = [d.name for d in DIALECTS]
        found = recognise(state)
        if found is None:
            keys = ", ".join(sorted(state)[:3])
            raise ForeignError(
                f"{path} is of no known dialect: its keys ({keys}, …) are none of {', '.join(names)}. Known models: "
                "ATSS of its authors, ATSS, RetinaNet and FCOS of mmdetection, RetinaNet and FCOS of torchvision"
            )
        return found
    return dialect_named(name)


def _renamed(theirs: State, dialect: Dialect, path: Path) -> State:
    """The tensors under the names of our network. Raises ForeignError naming keys that the dialect doesn't have."""
    names = {key: rename(key, dialect) for key in theirs}
    unknown = [key for key, name in names.items() if name is None]
    if unknown:
        raise ForeignError(
            f"{path} is not {dialect.title}: {len(unknown)} keys have no meaning there ({', '.join(unknown[:4])}"
            f"{', …' if len(unknown) > 4 else ''})"
        )
    # In towers that are lists of blocks, a block's layers become consecutive: convolution, norm if any, ReLU.
    step = 3 if any(name and ".norm." in name for name in names.values()) else 2
    state = {}
    for key, name in names.items():
        parts = (name or "").split(".")
        if len(parts) > 3 and parts[3] in ("convolution", "norm"):
            name = ".".join([*parts[:2], str(int(parts[2]) * step + (parts[3] == "norm")), *parts[4:]])
        if name:
            state[name] = theirs[key].float() if theirs[key].is_floating_point() else theirs[key]
    return state


def _completed(state: State, dialect: Dialect, path: Path) -> Model:
    """The dialect's model, completed from the tensors: depth, groups, deformable layers, towers, levels."""
    name = backbone_name(state)
    if name is None:
        raise ForeignError(
            f"{path}: its backbone is none of ResNet-50, ResNet-101, ResNeXt-101-32x8d and ResNeXt-101-64x4d, or "
            "backbone.layer1 or backbone.layer3 is missing"
        )
    tower = {k: v for k, v in state.items() if k.startswith("head.class_tower.")}
    grouped = any(v.ndim == 1 and k.endswith(".weight") for k, v in tower.items())
    convolutions = [k for k, v in tower.items() if v.ndim == 4 and ".offset." not in k]
    stages = (2, 3, 4, 5)
    backbone = replace(
        dialect.model.backbone,
        name=name,
        weights="none",
        frozen_stages=2,
        batch_norm="frozen",
        deformable_stages=tuple(
            s for s in stages if any(k.startswith(f"backbone.layer{s - 1}.") and ".offset." in k for k in state)
        ),
    )
    if name.startswith("resnext"):
        backbone = replace(backbone, bottleneck_stride="3x3")  # the same in all implementations of ResNeXt
    if dialect.name == "tv_retinanet" and "backbone.bn1.num_batches_tracked" not in state:
        # The published weights have frozen norms, which torchvision computes without an epsilon.
        backbone = replace(backbone, norm_epsilon=0.0)
    head = replace(
        dialect.model.head,
        convolutions=len(convolutions),
        group_norm_groups=32 if grouped else 0,
        tower_bias=grouped and any(k.replace(".weight", ".bias") in tower for k in convolutions),
        deformable=any(".offset." in k for k in tower),
    )
    levels = 3 + sum(k.startswith("pyramid.extra.") and k.endswith(".weight") for k in state)
    pyramid = replace(dialect.model.pyramid, levels=levels)
    return replace(dialect.model, backbone=backbone, head=head, pyramid=pyramid)


def _joined_scales(state: State) -> State:
    """Replace the tensors of the levels' scales by one tensor of all levels."""
    scales = sorted(key for key in state if key.startswith("head.scales."))
    rest = {k: v for k, v in state.items() if k not in scales}
    return {**rest, "head.scales": torch.cat([state[k].reshape(1) for k in scales])} if scales else rest


def _checked(state: State, config: Config, num_classes: int, path: Path) -> State:
    """The state dict, complete, for the detector of a configuration. Raises ForeignError naming what doesn't fit."""
    with torch.device("meta"):
        wanted = build_detector(config.model, max(1, num_classes), config.preprocess).state_dict()
    # The counters of a norm's updates aren't used, and frozen norms have none.
    counters = {k: torch.zeros((), dtype=torch.long) for k in wanted if k.endswith("num_batches_tracked")}
    state = {**counters, **state}
    # A deformable convolution at a tower's end may lack the bias that the others have: it gets a bias of zeros.
    ends = [k.removesuffix("offset.weight") for k in state if "_tower." in k and k.endswith(".offset.weight")]
    biases = [f"{end}bias" for end in ends if f"{end}bias" in wanted]
    state = {**{k: torch.zeros(wanted[k].shape) for k in biases}, **state}
    missing = [k for k in wanted if k not in state]
    left = [k for k in state if k not in wanted]
    shapes = [k for k in wanted if k in state and state[k].shape != wanted[k].shape]
    if missing or left or shapes:
        told = [f"{len(kind)} {what} ({', '.join(kind[:3])})" for kind, what in
                ((missing, "missing"), (left, "left over"), (shapes, "of another shape")) if kind]  # fmt: skip
        raise ForeignError(f"{path} is incomplete or of another model, under our names: {'; '.join(told)}")
    return {k: state[k] for k in wanted}


def _classes(count: int, names: tuple[str, ...]) -> Classes:
    """Names and COCO ids of the classes: COCO's if the count is COCO's, else the file's names, else numbers."""
    from torchvision.models.detection import FCOS_ResNet50_FPN_Weights

    coco = FCOS_ResNet50_FPN_Weights.COCO_V1.meta["categories"]  # by category id, gaps as "N/A"
    used = tuple(i for i, name in enumerate(coco) if name not in ("__background__", "N/A"))
    if count == len(coco):  # torchvision's models have an output for every id, unused ids included
        return Classes(tuple(coco), tuple(range(count)))
    if count == len(used):
        return Classes(tuple(coco[i] for i in used), used)
    if len(names) != count:
        names = tuple(f"class {i}" for i in range(count))
    return Classes(names, tuple(range(1, count + 1)))
