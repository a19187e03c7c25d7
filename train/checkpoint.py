"""Checkpoints: written atomically, and read without unpickling anything but tensors and plain values.

A checkpoint contains its configuration and classes, so that evaluation and export need nothing but the file.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import NoneType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from runtime.errors import UserError
from runtime.files import atomic_path, patient_file, sha256_file
from runtime.records import record_from_dict

from .build import build_detector, without_weights
from .config import Config
from .model.detector import DetectorNetwork
from .torch_files import load_plain, why_not

FORMAT = "atss-toolkit checkpoint"
VERSION = 1


_TYPES: dict[str, tuple[type, ...]] = {  # of the entries that aren't checked as JSON
    "step": (int,),
    "model": (dict,),
    "averaged": (dict, NoneType),
    "optimizer": (dict,),
    "scaler": (dict,),
    "ap": (float, NoneType),
    "best_ap": (float,),
}


class CheckpointError(UserError):
    """A checkpoint that is missing, damaged, foreign or of another version."""


class Classes(NamedTuple):
    """Names and COCO category ids of the classes, by class index."""

    names: tuple[str, ...]
    category_ids: tuple[int, ...]


class Checkpoint(NamedTuple):
    """The content of a checkpoint file."""

    config: Config
    classes: Classes
    step: int  # number of steps done
    model: dict[str, Tensor]
    averaged: dict[str, Tensor] | None  # the averaged weights, to evaluate and deploy
    optimizer: dict[str, Any]
    scaler: dict[str, Any]
    ap: float | None  # 0–1, of the last evaluation, if that was on the whole validation set
    best_ap: float  # 0–1, the highest of the run's evaluations on the whole validation set; −1 before the first


class LoadedDetector(NamedTuple):
    """A trained detector with what evaluation and export need to know of it."""

    detector: DetectorNetwork  # in evaluation mode, with the averaged weights where there are any
    config: Config
    classes: Classes
    ap: float | None
    step: int
    sha256: str  # of the checkpoint file


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint file; after an interruption or on a full disk the previous file is still there."""
    content = {
        "format": FORMAT,
        "version": VERSION,
        "config": json.dumps(dataclasses.asdict(checkpoint.config)),
        "classes": list(checkpoint.classes.names),
        "category_ids": list(checkpoint.classes.category_ids),
        **{k: v for k, v in checkpoint._asdict().items() if k not in ("config", "classes")},
    }
    with atomic_path(path) as temporary, patient_file(temporary) as file:
        torch.save(content, file)


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint file. Raises CheckpointError, which says what is wrong with the file and what to do."""
    if not path.is_file():
        raise CheckpointError(f"no checkpoint at {path}: give the last.pt or best.pt of a training run")
    try:
        content = load_plain(path)
    except Exception as error:  # torch raises a dozen types for a damaged or foreign file
        raise CheckpointError(
            f"{path} can't be read as a checkpoint (damaged, or not made by this toolkit): {why_not(error)}. "
            "Use another checkpoint of the run, or train again"
        ) from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise CheckpointError(f"{path} is a torch file but no checkpoint of this toolkit: give a last.pt or best.pt")
    if content.get("version") != VERSION:
        raise CheckpointError(
            f"{path} has checkpoint version {content.get('version')}, this toolkit reads version {VERSION}: "
            "use the toolkit version that wrote it, or train again"
        )
    try:
        fields = {k: content[k] for k in Checkpoint._fields if k not in ("config", "classes")}
        settings = record_from_dict(Config, json.loads(content["config"]), str(path))
        classes = Classes(tuple(content["classes"]), tuple(content["category_ids"]))
        wrong = [name for name, types in _TYPES.items() if not isinstance(fields[name], types)]
        if wrong:
            raise TypeError(f"{wrong[0]} is of type {type(fields[wrong[0]]).__name__}")
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} is an incomplete checkpoint ({error!r}): use another one of the run") from error
    return Checkpoint(config=settings, classes=classes, **fields)


def load_detector(path: str | Path) -> LoadedDetector:
    """Rebuild the detector of a checkpoint on the CPU, in evaluation mode. Raises CheckpointError."""
    path = Path(path)
    checkpoint = read_checkpoint(path)
    settings = checkpoint.config
    detector = build_detector(without_weights(settings.model), len(checkpoint.classes.names), settings.preprocess)
    load_weights(detector, checkpoint.averaged if checkpoint.averaged is not None else checkpoint.model, path)
    return LoadedDetector(
        detector.eval(), settings, checkpoint.classes, checkpoint.ap, checkpoint.step, sha256_file(path)
    )


def initialize_from(detector: DetectorNetwork, path: Path) -> None:
    """Load a checkpoint's weights to fine-tune them.

    The class convolution keeps its initial weights where the checkpoint has another number of classes. Raises
    CheckpointError for a checkpoint of another model.
    """
    checkpoint = read_checkpoint(path)
    state = checkpoint.averaged if checkpoint.averaged is not None else checkpoint.model
    fresh = detector.state_dict()
    classes = [k for k in fresh if k.startswith("head.class_logits.")]
    if any(k in state and state[k].shape != fresh[k].shape for k in classes):
        state = {**state, **{k: fresh[k] for k in classes}}
    load_weights(detector, state, path)


def load_weights(detector: DetectorNetwork, state: dict[str, Tensor], path: Path) -> None:
    """Load a state dict that must fit exactly. Raises CheckpointError, which names what doesn't fit."""
    try:
        detector.load_state_dict(state)
    except (RuntimeError, TypeError, AttributeError) as error:
        lines = str(error).splitlines()
        raise CheckpointError(
            f"{path}: the weights don't fit the configuration beside them: {lines[-1].strip()}"
        ) from error
