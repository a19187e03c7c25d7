"""Checkpoints: written atomically, and read without unpickling anything but tensors and plain values.

A checkpoint contains its configuration and classes, so that evaluation and export need nothing but the file.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, NamedTuple

import torch
from torch import Tensor

from runtime.bounds import Bounds, Count, Fraction, Id, Items, Name, shortened
from runtime.errors import UserError
from runtime.files import atomic_path, patient_file, sha256_file
from runtime.json_file import parse_json
from runtime.records import check_record, kind_of, plain, record_from_dict, shown

from .build import build_detector, without_weights
from .config import Config
from .integrity import DamagedError, check_finite, tensors_sha256
from .model.detector import DetectorNetwork
from .torch_files import load_plain, why_not

FORMAT = "atss-toolkit checkpoint"
VERSION = 1


_STATES: dict[str, tuple[type, ...]] = {  # the entries that hold tensors
    "model": (dict,),
    "averaged": (dict, NoneType),
    "optimizer": (dict,),
    "scaler": (dict,),
}
_HASHED = ("model", "averaged", "optimizer")
HASHES = "sha256"  # the entry with the hashes of these; older files lack it


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
    ap: float | None  # 0–1, of these weights, if they were evaluated on the whole validation set
    best_ap: float  # 0–1, the highest of the run's evaluations on the whole validation set; −1 before the first
    since_best: int = 0  # evaluations on the whole validation set since that one


@dataclasses.dataclass(frozen=True)
class Facts:
    """The entries of a checkpoint file that are plain values."""

    step: Count
    ap: Fraction | None
    best_ap: Annotated[float, Bounds(-1, 1)]
    classes: Annotated[tuple[Name, ...], Items(1, 100_000)]
    category_ids: Annotated[tuple[Id, ...], Items(1, 100_000, distinct=True)]
    since_best: Count = dataclasses.field(default=0, metadata={"absent": 0})

    def conflicts(self) -> Iterator[tuple[str, str]]:
        """See `bounds.Conflicts`."""
        if len(self.category_ids) != len(self.classes):
            yield "category_ids", f"as many ids as classes, here {len(self.classes)}"


class LoadedDetector(NamedTuple):
    """A trained detector with what evaluation and export need to know of it."""

    detector: DetectorNetwork  # in evaluation mode, with the averaged weights where there are any
    config: Config
    classes: Classes
    ap: float | None
    step: int
    sha256: str  # of the checkpoint file


def checked_classes(names: tuple[str, ...], category_ids: tuple[int, ...], source: str) -> Classes:
    """The classes of a data set, for a checkpoint.

    Raises UserError for names and ids that no checkpoint or manifest takes: now, not at the export after the training.
    """
    check_record(Facts(step=0, ap=None, best_ap=-1.0, classes=names, category_ids=category_ids), source)
    return Classes(names, category_ids)


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint file; after an interruption or on a full disk the previous file is still there."""
    content = {
        "format": FORMAT,
        "version": VERSION,
        "config": json.dumps(dataclasses.asdict(checkpoint.config)),
        "classes": list(checkpoint.classes.names),
        "category_ids": list(checkpoint.classes.category_ids),
        **{k: v for k, v in checkpoint._asdict().items() if k not in ("config", "classes")},
        HASHES: {name: tensors_sha256(getattr(checkpoint, name)) for name in _HASHED},
    }
    with atomic_path(path) as temporary, patient_file(temporary) as file:
        torch.save(content, file)


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint file. Raises CheckpointError, which says what is wrong with the file and what to do.

    The file's checksums, the hashes of its tensors and whether all numbers are finite are checked. A part that was
    taken out, such as the optimizer's state to make a file small, has nothing to check.
    """
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
    if type(content.get("version")) is not int or content["version"] != VERSION:
        raise CheckpointError(
            f"{path} has checkpoint version {shown(content.get('version'))}, this toolkit reads version {VERSION}: "
            "use the toolkit version that wrote it, or train again"
        )
    try:
        needed = [name for name in Checkpoint._fields if name not in Checkpoint._field_defaults]
        missing = [name for name in (*needed, "category_ids") if name not in content]
        if missing:
            raise DamagedError(f"{missing[0]} is missing")
        names = [f.name for f in dataclasses.fields(Facts) if f.name in content]
        facts = record_from_dict(Facts, plain({name: content[name] for name in names}), str(path))
        if not isinstance(content["config"], str):
            raise DamagedError(f"config is {kind_of(content['config'])}, expected a text")
        settings = record_from_dict(Config, parse_json(content["config"], f"{path}: its configuration"), str(path))
        wrong = [name for name, types in _STATES.items() if not isinstance(content[name], types)]
        if wrong:
            raise DamagedError(f"{wrong[0]} is {kind_of(content[wrong[0]])}")
        _check_states(content)
    except (ValueError, RecursionError) as error:  # DamagedError is a ValueError
        raise CheckpointError(f"{path} is a damaged or incomplete checkpoint: {error}; {_ANOTHER}") from error
    except UserError as error:
        raise CheckpointError(f"{error}; {_ANOTHER}") from error
    return Checkpoint(
        config=settings,
        classes=Classes(facts.classes, facts.category_ids),
        step=facts.step,
        ap=facts.ap,
        best_ap=facts.best_ap,
        since_best=facts.since_best,
        **{name: content[name] for name in _STATES},
    )


_ANOTHER = "use another checkpoint of the run, or train again"


def _check_states(content: dict[str, Any]) -> None:
    """Raise DamagedError unless the states' hashes are those that were saved with them, and all numbers finite."""
    hashes = content.get(HASHES, {})
    if not isinstance(hashes, dict):
        raise DamagedError(f"{HASHES} is {kind_of(hashes)}, expected hashes by name")
    for name in _HASHED:
        if not content[name]:
            continue
        if name in hashes and hashes[name] != tensors_sha256(content[name]):
            raise DamagedError(f"the numbers of {name!r} are not those that were saved (their SHA-256 differs)")
        check_finite({name: content[name]})


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


def initialize_from(detector: DetectorNetwork, path: Path, names: tuple[str, ...] | None = None) -> str:
    """Load a checkpoint's weights to fine-tune them on classes of these `names`; a line says which were taken over.

    The class convolution keeps its initial weights where the checkpoint has another number of classes. Raises
    CheckpointError for a checkpoint of another model.
    """
    checkpoint = read_checkpoint(path)
    state = checkpoint.averaged if checkpoint.averaged is not None else checkpoint.model
    fresh = detector.state_dict()
    classes = [k for k in fresh if k.startswith("head.class_logits.")]
    starts_anew = any(k in state and state[k].shape != fresh[k].shape for k in classes)
    if starts_anew:
        state = {**state, **{k: fresh[k] for k in classes}}
    load_weights(detector, state, path)
    before = checkpoint.classes.names
    if starts_anew:
        now = "" if names is None else f" for {_listed(names)}"
        return f"{path}: all weights are taken over but the class layer's, of {_listed(before)}; it starts anew{now}"
    if names is None or names == before:
        return f"{path}: all weights are taken over, the class layer's too"
    return (
        f"{path}: all weights are taken over, the class layer's too, though its classes were {_listed(before)} and are "
        f"now {_listed(names)}"
    )


def _listed(names: tuple[str, ...]) -> str:
    """The number of classes and the first names."""
    shown = ", ".join(shortened(name) for name in names[:3]) + (", …" if len(names) > 3 else "")
    return f"{len(names)} class{'es' if len(names) != 1 else ''} ({shown})"


def load_weights(detector: DetectorNetwork, state: dict[str, Tensor], path: Path) -> None:
    """Load a state dict that must fit exactly. Raises CheckpointError, which names what doesn't fit."""
    try:
        detector.load_state_dict(state)
    except (RuntimeError, TypeError, AttributeError) as error:
        lines = str(error).splitlines()
        raise CheckpointError(
            f"{path}: the weights don't fit the configuration beside them: {lines[-1].strip()}"
        ) from error
