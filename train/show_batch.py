"""Draw what the network is trained on: the very batches of a run, after augmentation.

    python -m train.show_batch atss_tiny --data.train-json train.json --data.train-images train/ -o batch.png
    python -m train.show_batch atss_tiny … --first-step 100 --batches 3 -o batches.png

It takes the recipe and the settings that `python -m train` takes, so that the batches are those of that run.
"""

from __future__ import annotations

if __name__ == "__main__":  # before the other imports, which take their time: Ctrl-C ends them in one line
    from runtime.interrupts import end_at_once

    end_at_once()

import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Annotated

import tyro

from runtime.bounds import Bounds, Count
from runtime.coco import CocoDataset
from runtime.command_names import program
from runtime.errors import UserError, run_main
from runtime.files import atomic_write, require_writable
from runtime.outputs import check_outputs

from .arguments import parse_recipe
from .batch_sheet import check_size, draw_batch, encode_pages
from .build import build_training_batches
from .config import Config
from .data.loader import TrainBatch
from .trainer.data_in_coco import data_in_coco
from .trainer.distributed import ALONE
from .trainer.start import in_steps_of, load_datasets, without_missing

MOST_BATCHES = 50
SUFFIXES = (".png", ".jpg", ".jpeg")


@dataclass(frozen=True)
class Options:
    """What to draw."""

    out: Annotated[Path, tyro.conf.arg(aliases=("-o",))]
    """The drawing, a PNG or JPEG file."""
    batches: Annotated[int, Bounds(1, MOST_BATCHES)] = 1
    """Number of batches, one below the other."""
    first_step: Count = 0
    """The step of the first batch, counted from 0."""


def usage() -> str:
    """How the command is called."""
    return f"usage: {program('train.show_batch')} RECIPE -o batch.png [--setting value …]"


def batches_of_run(config: Config, dataset: CocoDataset, first_step: int) -> Iterator[TrainBatch]:
    """The batches that a run of this configuration is fed with from `first_step` on, read in this process.

    Raises UserError where the run is over before that step.
    """
    config = in_steps_of(config, dataset)
    if first_step >= config.schedule.steps:
        raise UserError(f"--first-step {first_step}, but the run has {config.schedule.steps} steps; expected less")
    settings = replace(config, data=replace(config.data, workers=0))
    return build_training_batches(dataset, settings, first_step)


def parse(arguments: list[str]) -> tuple[Config, Options]:
    """The configuration of a run and what of it to draw. Raises UserError for what can't work."""
    config, options = parse_recipe(arguments, Options, "train.show_batch", usage())
    if not 1 <= options.batches <= MOST_BATCHES:
        raise UserError(f"--batches {options.batches}: expected at least 1 and at most {MOST_BATCHES}")
    if options.first_step < 0:
        raise UserError(f"--first-step {options.first_step}: expected at least 0")
    if options.out.suffix.lower() not in SUFFIXES:
        raise UserError(f"{options.out}: expected a name that ends with {', '.join(SUFFIXES)}")
    return config, options


def main() -> None:
    """The command: draw the batches and print the drawing's path."""
    if sys.argv[1:2] in (["-h"], ["--help"]):
        print(usage())
        return
    config, options = parse(sys.argv[1:])
    # The validation set has no part in the batches.
    config = replace(config, data=replace(config.data, val="", val_json="", val_images=""))
    with tempfile.TemporaryDirectory() as folder:
        config = data_in_coco(config, Path(folder), False, ALONE)
        dataset, _ = load_datasets(config, report=True)
        dataset = without_missing(dataset, config, ALONE)
        reads: list[str | Path] = [config.data.train_json, *map(dataset.path, range(len(dataset)))]
        check_outputs(reads, {"-o": options.out})
        require_writable(options.out)
        pages = []
        found = batches_of_run(config, dataset, options.first_step)
        for step, batch in enumerate(islice(found, options.batches), start=options.first_step):
            for problem in batch.problems:
                print(f"warning: skipped an image: {problem}")
            pages.append(draw_batch(batch, step, dataset.classes, config.preprocess.pad_value))
            check_size(pages)
    atomic_write(options.out, encode_pages(pages, options.out.suffix))
    if len(pages) < options.batches:
        print(f"the run ends after {options.first_step + len(pages)} steps: drew {len(pages)} of {options.batches}")
    print(options.out)


if __name__ == "__main__":
    run_main(main)
