"""Training as a function; `python -m train` is its command."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from runtime.command_names import program
from runtime.errors import UserError

from .build import without_weights
from .checkpoint import read_checkpoint
from .config import Config, Data
from .config.overrides import override
from .config.recipes import RECIPES
from .pretrained.catalogue import CATALOGUE
from .trainer.device import pick_device
from .trainer.distributed import process_group
from .trainer.loop import TrainingResult, train_detector
from .trainer.progress import say

__all__ = ["TrainingResult", "starting_config", "train"]


def train(
    recipe: str | Path | Config,
    *,
    out: str | Path,
    overrides: Mapping[str, Any] | None = None,
    resume: bool = False,
) -> TrainingResult:
    """Train a detector and return where its checkpoints are and what AP they reached.

    `recipe` is a recipe's name, the path of a checkpoint to fine-tune, or a configuration. `overrides` changes settings
    by name. `out` is the folder of the run: checkpoints, log and TensorBoard's files; with `resume` a run that is there
    is continued. Under torchrun every process calls this alike; process 0 writes. Raises UserError, saying what to
    change, for names, settings and data that can't work.

        from train.api import train

        result = train(
            "atss_tiny",
            out="runs/tiny",
            overrides={
                "data.train_json": "data/shapes/train.json",
                "data.train_images": "data/shapes/train",
                "data.val_json": "data/shapes/val.json",
                "data.val_images": "data/shapes/val",
                "schedule.steps": 500,
            },
        )
        print(result.last, result.ap)
    """
    config = override(starting_config(recipe), overrides or {})
    with process_group(pick_device(config.run.device).type == "cuda") as world:
        result = train_detector(config, Path(out), resume, world)
        if world.is_main:
            say(f"done: {result.last}")
    return result


def starting_config(recipe: str | Path | Config) -> Config:
    """The configuration of a recipe by name, or that of a checkpoint, to start with its weights on other data.

    Raises UserError for an unknown name, with the nearest one, and for a file that is no checkpoint.
    """
    if isinstance(recipe, Config):
        return recipe
    name = str(recipe)
    if name in RECIPES:
        return RECIPES[name]()
    if name.endswith(".pt"):
        found = read_checkpoint(Path(name)).config
        return replace(found, model=without_weights(found.model), data=Data(), run=replace(found.run, init=name))
    if Path(name).suffix.lower() in (".onnx", ".engine"):
        raise UserError(
            f"{name}: training starts from a recipe or a checkpoint (.pt), not from an exported model; give the "
            "last.pt or best.pt that it was made from"
        )
    if name in CATALOGUE:
        raise UserError(
            f"{name} is a published checkpoint: run {program('train.pretrained')} {name} first, then train {name}.pt"
        )
    near = difflib.get_close_matches(name, RECIPES, n=1, cutoff=0.3)
    hint = f", did you mean {near[0]}?" if near else ""
    raise UserError(f"no recipe {name!r}{hint} (there are {', '.join(RECIPES)})")
