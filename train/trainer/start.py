"""Start and resume of a run: its data sets, and the model and optimizer at its first step."""

from __future__ import annotations

import dataclasses
import shlex
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from runtime.coco import CocoDataset, load_coco
from runtime.coco.classes import match_classes
from runtime.coco.metrics import NOTHING
from runtime.errors import UserError
from runtime.images.limit import max_pixels

from ..build import build_detector
from ..checkpoint import Checkpoint, CheckpointError, Classes, initialize_from, load_weights, read_checkpoint
from ..config import Config, Data
from ..config.overrides import settings_by_name
from ..data.objects import crowds_as_objects, images_to_train_on
from ..data.present import are_there, only
from ..data.repeats import epoch_length, image_factors, repeats_note
from ..model.detector import DetectorNetwork
from .device import pick_device, pick_precision
from .distributed import World, all_gather
from .optim import AveragedWeights, build_optimizer, in_steps, resume_optimizer
from .progress import say

LAST = "last.pt"  # written every `run.checkpoint_every` steps; --resume continues from it
BEST = "best.pt"  # of highest AP among the run's evaluations on the whole validation set
SHOWN = 5  # settings that a resumed run names


class TrainingError(UserError):
    """A run that can't be started or continued."""


class State(NamedTuple):
    """Everything that changes while a run trains, as it is at the run's first step."""

    model: DetectorNetwork
    average: AveragedWeights | None  # None where the schedule averages nothing
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler  # disabled unless training in fp16
    step: int  # steps done before
    best_ap: float  # 0–1, of the evaluations before; −1 where there was none
    since_best: int  # evaluations since that one
    resumed: Config | None = None  # the configuration before; None in a new run
    taken_over: str = ""  # what a new run has of the checkpoint that it fine-tunes; "" where there is none


def start_or_resume(config: Config, classes: Classes, out: Path, resume: bool) -> State:
    """The state of a new run, or with `resume` that of the `last.pt` in `out`, if there is one.

    Raises TrainingError where `out` holds a run already, CheckpointError for a `last.pt` of another model, classes,
    optimizer or normalisation.
    """
    device = pick_device(config.run.device)
    last = out / LAST
    if not resume and last.exists():
        raise TrainingError(
            f"{last} exists already: add --resume to the options of that run to continue it, or choose another --out"
        )
    checkpoint = read_checkpoint(last) if resume and last.exists() else None
    torch.manual_seed(config.run.seed)
    model = build_detector(config.model, len(classes.names), config.preprocess)
    taken_over = ""
    if config.run.init and checkpoint is None:
        taken_over = initialize_from(model, Path(config.run.init), classes.names)
    model = model.to(device)
    if config.run.channels_last:
        model = model.to(memory_format=torch.channels_last)
    average = AveragedWeights(model, config.schedule.ema) if config.schedule.ema > 0 else None
    optimizer = build_optimizer(model, config.schedule)
    scaler = torch.amp.GradScaler(device.type, enabled=pick_precision(config) == torch.float16)
    if checkpoint is None:
        return State(model, average, optimizer, scaler, 0, -1.0, 0, taken_over=taken_over)
    _check_same_run(checkpoint, config, classes, last)
    load_weights(model, checkpoint.model, last)
    if average is not None:  # an average that is switched on now starts at the trained weights
        load_weights(average.model, checkpoint.averaged if checkpoint.averaged is not None else checkpoint.model, last)
    if not checkpoint.optimizer:
        raise CheckpointError(
            f"{last} lacks the optimizer's state, so its run can't be continued; fine-tune it in another --out with "
            f"--run.init {last}"
        )
    try:
        resume_optimizer(optimizer, checkpoint.optimizer)
        scaler.load_state_dict(checkpoint.scaler)
    except (KeyError, ValueError, TypeError, AttributeError, IndexError, RuntimeError) as error:
        raise CheckpointError(
            f"{last}: the optimizer's state doesn't fit the model ({type(error).__name__}: {error}); "
            "use another checkpoint of the run, or train again"
        ) from error
    best_ap, since_best = checkpoint.best_ap, checkpoint.since_best
    return State(model, average, optimizer, scaler, checkpoint.step, best_ap, since_best, checkpoint.config)


def starting_notes(state: State, config: Config) -> list[str]:
    """What a run says before its first step: which weights it begins with.

    A resumed run says where it goes on, and which settings aren't those before.
    """
    if state.resumed is None:
        return [state.taken_over] if state.taken_over else []
    steps = config.schedule.steps
    lines = [f"resumed at step {state.step} of {steps}"]
    if state.step >= steps:
        lines = [f"nothing left to do: {state.step} of {steps} steps are done (more with --schedule.steps)"]
    before, now = settings_by_name(state.resumed), settings_by_name(config)
    changed = [
        f"--{name.replace('_', '-')} {_shown(before[name])} is now {_shown(now[name])}"
        for name in now
        if now[name] != before[name]
    ]
    if changed:
        rest = f", and {len(changed) - SHOWN} more" if len(changed) > SHOWN else ""
        lines.append(f"note: other settings than before: {', '.join(changed[:SHOWN])}{rest}")
    return lines


def _shown(value: object) -> str:
    """A setting's value as on a command line."""
    return str(value) or "''"


def _check_same_run(checkpoint: Checkpoint, config: Config, classes: Classes, last: Path) -> None:
    """Logging, saving and the schedule may change in a resumed run; the model, its input and the classes may not."""
    if checkpoint.classes != classes:
        raise CheckpointError(
            f"{last} was trained on the classes {', '.join(checkpoint.classes.names)}; the data now has "
            f"{', '.join(classes.names)}: resume with the same data, or choose another --out"
        )
    before = checkpoint.config.schedule.optimizer
    if before != config.schedule.optimizer:
        raise CheckpointError(
            f"{last} holds the state of {before}, not of {config.schedule.optimizer}: "
            f"resume with --schedule.optimizer {before}, or choose another --out"
        )
    then, now = ((c.preprocess.mean, c.preprocess.std, c.preprocess.channel_order) for c in (checkpoint.config, config))
    if then != now:
        raise CheckpointError(
            f"{last} was trained on images normalised by {then}, not by {now}: resume with the same --preprocess "
            "options, or choose another --out"
        )
    if dataclasses.replace(checkpoint.config.model, loss=config.model.loss) != config.model:
        raise CheckpointError(f"{last} holds another model than this recipe: resume with the same options")


def in_steps_of(config: Config, train_set: CocoDataset) -> Config:
    """The configuration with its schedule in steps alone; an epoch of the training set has its repeated images."""
    indices = images_to_train_on(train_set, config.data.keep_empty)
    samples = epoch_length(image_factors(train_set, indices, config.data.repeat_threshold), len(indices))
    return dataclasses.replace(config, schedule=in_steps(config.schedule, samples))


def require_data(data: Data, last: Path | None = None) -> None:
    """Raise TrainingError, naming the option, where there is no training set, or an annotation file without its images.

    `last` is the checkpoint of a run that is to be resumed: its data are named, since a resumed run needs them again.
    """
    for name, kind in (("train", "training"), ("val", "validation")):
        json_path, images = getattr(data, f"{name}_json"), getattr(data, f"{name}_images")
        if not getattr(data, name) and bool(json_path) != bool(images):
            given, needed = (f"--data.{name}-json {json_path}", f"--data.{name}-images (the folder of its images)")
            if images:
                given, needed = f"--data.{name}-images {images}", f"--data.{name}-json (annotations in COCO's format)"
            raise TrainingError(f"no {kind} data: {given} needs {needed} too")
    if data.train or data.train_json:
        return
    if last is not None and last.exists():
        raise TrainingError(
            f"no training data: --resume needs all options that the run was started with; the data of {last} were "
            f"{_as_options(read_checkpoint(last).config.data)}"
        )
    raise TrainingError(
        "no training data: give --data.train-json and --data.train-images (COCO format), or --data.train "
        "(yolo:data.yaml, voc:FOLDER, createml:FILE), or make some with: python -m train.shapes data/shapes"
    )


def _as_options(data: Data) -> str:
    """The options that name these data sets, as on a command line."""
    names: list[str] = []
    for name in ("train", "val"):
        names += [name] if getattr(data, name) else [f"{name}_json", f"{name}_images"]
    return " ".join(
        f"--data.{name.replace('_', '-')} {shlex.quote(getattr(data, name))}" for name in names if getattr(data, name)
    )


def load_datasets(config: Config, report: bool) -> tuple[CocoDataset, CocoDataset | None]:
    """The training set and, where the configuration names one, the validation set.

    The validation set's categories are matched by name with those of the training set. With `report` what the two don't
    have in common is printed, and the data sets' problems. Raises TrainingError where there is no training set,
    CocoError where the two sets share no category, TrainingError where no image of the validation set is there.
    """
    data = config.data
    require_data(data)
    train_set = load_coco(data.train_json, data.train_images, allow_outside=data.allow_outside)
    train_set, notes = crowds_as_objects(train_set)
    val_set = load_coco(data.val_json, data.val_images, allow_outside=data.allow_outside) if data.val_json else None
    for dataset in ([train_set] if val_set is None else [train_set, val_set]) if report else []:
        for problem in dataset.problems:
            say(f"warning: {dataset.json_path}: {problem}")
    for note in notes if report else ():
        say(f"{train_set.json_path}: {note}")
    if report and data.repeat_threshold > 0:
        say(repeats_note(train_set, images_to_train_on(train_set, data.keep_empty), data.repeat_threshold))
    limit = max_pixels(data.max_megapixels)
    train_set = dataclasses.replace(train_set, max_pixels=limit)
    if val_set is not None:
        val_set = dataclasses.replace(val_set, max_pixels=limit)
        written = val_set.written_category_ids
        matched = match_classes(train_set.categories, val_set.categories, data.val_json, "the training set", written)
        for line in matched.differences if report else ():
            say(f"warning: {line}")
        option = "--data.val" if data.val else "--data.val-images"
        if not any(val_set.path(index).is_file() for index in range(len(val_set))):
            raise TrainingError(
                f"{val_set.json_path}: none of its {len(val_set)} images is there, such as {val_set.path(0)}; "
                f"check {option}"
            )
        if report and len(missing := np.flatnonzero(~are_there(val_set, np.arange(len(val_set))))):
            say(
                f"warning: {val_set.json_path}: {len(missing)} of {len(val_set)} images are missing, such as "
                f"{val_set.path(int(missing[0]))}; they are left out of every score (check {option})"
            )
        if report and val_set.crowd.all():
            say(f"warning: {data.val_json}: {NOTHING}; the run gets no {BEST}")
    return train_set, val_set


def without_missing(train_set: CocoDataset, config: Config, world: World) -> CocoDataset:
    """The training set without the images whose files are missing; a warning says how many they are.

    Process 0 looks, since all processes must train on the same images. Raises TrainingError where no image with an
    object is there.
    """
    missing = all_gather(_missing_ids(train_set, config) if world.is_main else None, world)[0]
    return only(train_set, ~np.isin(train_set.image_ids, missing)) if len(missing) else train_set


def _missing_ids(train_set: CocoDataset, config: Config) -> np.ndarray:
    """The ids of the images to train on whose files are missing."""
    indices = images_to_train_on(train_set, config.data.keep_empty)
    missing = indices[~are_there(train_set, indices)]
    if not len(missing):
        return missing
    option = "--data.train" if config.data.train else "--data.train-images"
    with_objects = images_to_train_on(train_set, keep_empty=False)
    if np.isin(with_objects, missing).all():
        which = f"{len(indices)} images" if len(missing) == len(indices) else f"{len(with_objects)} images with objects"
        raise TrainingError(
            f"{train_set.json_path}: none of its {which} is there, such as {train_set.path(int(with_objects[0]))}; "
            f"check {option}"
        )
    say(
        f"warning: {train_set.json_path}: {len(missing)} of {len(indices)} images are missing, such as "
        f"{train_set.path(int(missing[0]))}; training goes on without them (check {option})"
    )
    return train_set.image_ids[missing]
