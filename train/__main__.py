"""Train a detector.

    python -m train atss_tiny --out runs/tiny --data.train-json T.json --data.train-images T/ --data.val-json V.json …
    python -m train atss_tiny --out runs/mine --data.train yolo:data.yaml --data.val yolo:data.yaml
    python -m train atss_r50_fpn_1x --help        # every setting and its value in the recipe
    python -m train mine.pt --out runs/tuned --data.train-json …      # fine-tune a checkpoint, with its own model

Any setting of the recipe can be overridden by name. `--resume` continues the run in --out. On several GPUs or nodes:

    torchrun --nproc-per-node 8 -m train atss_r50_fpn_1x --out …
"""

from __future__ import annotations

if __name__ == "__main__":  # before the other imports, which take their time: Ctrl-C ends them in one line
    from runtime.interrupts import end_at_once
    from runtime.waiting import spin_briefly

    end_at_once()
    spin_briefly()

import sys
from dataclasses import dataclass
from pathlib import Path

import tyro

from runtime.command_names import program
from runtime.errors import run_main

from .api import train
from .arguments import parse_recipe
from .config import Config
from .config.recipes import RECIPES

FIRST = "atss_tiny"  # the recipe for a beginner: it trains on a CPU in minutes and needs no weights


def usage() -> str:
    """How the command is called, in a line."""
    command = program("train")
    return (
        f"usage: {command} RECIPE --out FOLDER [--setting value …]; a good RECIPE to begin with is {FIRST}, "
        f"{command} --help lists them all"
    )


def full_help() -> str:
    """How the command is called, what helps on, and what each recipe is."""
    command, width = program("train"), max(map(len, RECIPES))
    return "\n".join(
        [
            f"usage: {command} RECIPE --out FOLDER [--setting value …]",
            "",
            f"{command} RECIPE --help lists all settings and their values in the recipe. A good one to begin with is",
            f"{FIRST}. A checkpoint (last.pt or best.pt) in the recipe's place is fine-tuned.",
            "",
            "recipes:",
            *(f"  {name:{width}}  {(recipe.__doc__ or '').strip()}" for name, recipe in RECIPES.items()),
        ]
    )


@dataclass(frozen=True)
class Options:
    """How to run it."""

    out: Path
    """Folder of the run: checkpoints, log, the files of trackers."""
    resume: tyro.conf.FlagCreatePairsOff[bool] = False
    """Continue the run in --out where there is one."""


def parse(arguments: list[str]) -> tuple[Config, Options]:
    """Recipe name and overrides → configuration and options. Unknown names and wrong types end the program.

    Raises UserError for an unknown recipe and for a value that can't work.
    """
    return parse_recipe(arguments, Options, "train", usage())


def main() -> None:
    """The command: print its usage, or train what its arguments say."""
    if sys.argv[1:2] in (["-h"], ["--help"]):
        print(full_help())
        return
    config, options = parse(sys.argv[1:])
    train(config, out=options.out, resume=options.resume)


if __name__ == "__main__":
    run_main(main)
