"""Train a detector.

    python -m train atss_tiny --out runs/tiny --data.train-json T.json --data.train-images T/ --data.val-json V.json …
    python -m train atss_r50_fpn_1x --help        # every setting and its value in the recipe
    python -m train mine.pt --out runs/tuned --data.train-json …      # fine-tune a checkpoint, with its own model

Any setting of the recipe can be overridden by name. `--resume` goes on with the run in --out. On several GPUs or nodes:

    torchrun --nproc-per-node 8 -m train atss_r50_fpn_1x --out …
"""

from __future__ import annotations

import difflib
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import tyro

from runtime.errors import UserError, run_main

from .config import Config, Data
from .config.check import check_config
from .config.recipes import RECIPES
from .model.backbone_settings import follow_backbone
from .model.build import without_weights
from .trainer.checkpoint import read_checkpoint
from .trainer.device import pick_device
from .trainer.distributed import process_group
from .trainer.loop import train_detector

USAGE = f"usage: python -m train RECIPE --out FOLDER [--setting value …], RECIPE one of {', '.join(RECIPES)}"


@dataclass(frozen=True)
class Options:
    """How to run it."""

    out: Path
    """Folder of the run: checkpoints, log, TensorBoard files."""
    resume: tyro.conf.FlagCreatePairsOff[bool] = False
    """Go on with the run in --out where there is one."""


def parse(arguments: list[str]) -> tuple[Config, Options]:
    """Recipe name and overrides → configuration and options. Unknown names and wrong types end the program.

    Raises UserError for an unknown recipe and for a value that can't work.
    """
    if not arguments:
        raise UserError(f"no recipe given; {USAGE}")
    recipe = RECIPES.get(arguments[0])
    if recipe is None and arguments[0].endswith(".pt"):
        default = _from_checkpoint(Path(arguments[0]))
        description = f"Fine-tune {arguments[0]}"
    elif recipe is not None:
        default = recipe()
        description = recipe.__doc__ or ""
    else:
        near = difflib.get_close_matches(arguments[0], RECIPES, n=1, cutoff=0.3)
        hint = f", did you mean {near[0]}?" if near else ""
        raise UserError(f"no recipe {arguments[0]!r}{hint} (there are {', '.join(RECIPES)})")

    def command(
        options: Annotated[Options, tyro.conf.arg(name="")],
        config: Annotated[Config, tyro.conf.arg(name="")] = default,
    ) -> tuple[Config, Options]:
        return config, options

    config, options = tyro.cli(
        command, prog=f"python -m train {arguments[0]}", args=arguments[1:], description=description
    )
    config = follow_backbone(config, default, _names(arguments[1:]))
    check_config(config)
    return config, options


def _names(arguments: list[str]) -> set[str]:
    """The settings that a command line names, in the configuration's spelling."""
    return {a.removeprefix("--").split("=")[0].replace("-", "_") for a in arguments if a.startswith("--")}


def _from_checkpoint(path: Path) -> Config:
    """The configuration of a checkpoint, to begin with its weights and on other data."""
    found = read_checkpoint(path).config
    return replace(found, model=without_weights(found.model), data=Data(), run=replace(found.run, init=str(path)))


def main() -> None:
    if sys.argv[1:2] in (["-h"], ["--help"]):
        print(USAGE)
        return
    config, options = parse(sys.argv[1:])
    with process_group(pick_device(config.run.device).type == "cuda") as world:
        checkpoint = train_detector(config, options.out, options.resume, world)
    if world.is_main:
        print(f"done: {checkpoint}")


if __name__ == "__main__":
    run_main(main)
