"""The quickstart's forecast: draws a few images, trains a few steps and says how long all of it will take here.

python scripts/quickstart_estimate.py RECIPE --num-images 2300 --run runs/quickstart/train --spent 92
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

from runtime.errors import run_main
from train.config import Config
from train.config.recipes import RECIPES
from train.shapes import Settings, generate
from train.trainer.loop import LAST, train_detector
from train.trainer.progress import duration
from train.trainer.run_log import LOG, read_log

WARM_UP, MEASURED = 3, 5  # steps
# Curves, export, verification, two evaluations and what is drawn of them take as long as drawing so many images: the
# one, like the other, is mostly work of one core that needs no wide vectors.
REST_IN_IMAGES = 9000


class Measured(NamedTuple):
    """Seconds that this machine takes."""

    image: float  # to draw one
    step: float  # of training


class Forecast(NamedTuple):
    """Seconds of the parts, and of all together with what was spent before."""

    drawing: float
    training: float
    rest: float
    total: float


def forecast(measured: Measured, images: int, steps: int, spent: float) -> Forecast:
    """How long a quickstart takes that has so many images to draw and steps to train; `spent` seconds are over."""
    drawing, training = images * measured.image, steps * measured.step
    rest = REST_IN_IMAGES * measured.image
    return Forecast(drawing, training, rest, spent + drawing + training + rest)


def said(found: Forecast) -> str:
    """The forecast as a line."""
    named = ((found.drawing, "to draw"), (found.training, "to train"), (found.rest, "the rest"))
    parts = ", ".join(f"{duration(seconds)} {name}" for seconds, name in named if seconds > 0)
    return f"about {duration(found.total)} in all on this machine ({parts})"


def measure(config: Config, folder: Path) -> Measured:
    """Draw and train in a folder of its own, by the functions that the quickstart uses."""
    batch, data = config.schedule.batch, folder / "shapes"
    drawn = Settings(train=2 * batch, val=1)
    started = time.perf_counter()
    generate(data, drawn, progress=False)
    image = (time.perf_counter() - started) / (drawn.train + drawn.val)
    few = dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, train_json=str(data / "train.json"), train_images=str(data / "train")),
        schedule=dataclasses.replace(config.schedule, steps=WARM_UP + MEASURED, epochs=0.0),
        run=dataclasses.replace(config.run, log_every=1),
    )
    with contextlib.redirect_stdout(io.StringIO()):
        train_detector(few, folder / "run")
    return Measured(image, seconds_per_step(read_log(folder / "run" / LOG), batch))


def seconds_per_step(lines: list[dict[str, Any]], batch: int) -> float:
    """Seconds of a step after the warm-up, of a log whose speeds are means from the first step on."""
    ended = {line["step"]: line["step"] * batch / line["images_per_second"] for line in lines}
    return (ended[WARM_UP + MEASURED] - ended[WARM_UP]) / MEASURED


def steps_left(config: Config, run: Path) -> int:
    """Steps that a run in this folder still has to take."""
    taken = max((line["step"] for line in read_log(run / LOG)), default=0) if (run / LAST).exists() else 0
    return max(0, config.schedule.steps - taken)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("recipe", choices=sorted(RECIPES))
    parser.add_argument("--num-images", type=int, required=True, help="to draw; 0 where they are there")
    parser.add_argument("--run", type=Path, required=True, help="the training's folder")
    parser.add_argument("--spent", type=float, default=0.0, help="seconds that are over already")
    options = parser.parse_args()
    started = time.perf_counter()
    config = RECIPES[options.recipe]()
    with tempfile.TemporaryDirectory() as folder:
        measured = measure(config, Path(folder))
    left = steps_left(config, options.run)
    spent = options.spent + time.perf_counter() - started
    print(said(forecast(measured, options.num_images, left, spent)), flush=True)


if __name__ == "__main__":
    run_main(main)
