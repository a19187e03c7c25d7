"""The quickstart's forecast: draws a few images, trains a few steps and says how long the quickstart will take.

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
from runtime.training_log import LOG, read_log
from train.config import Config
from train.config.recipes import RECIPES
from train.shapes import Settings, generate
from train.trainer.loop import LAST, train_detector
from train.trainer.progress import duration

WARM_UP, MEASURED = 3, 5  # steps
# Curves, export, verification, two evaluations and their drawings take as long as drawing this number of images. Both
# are mostly work of one core without wide vectors.
REST_IN_IMAGES = 9000


class Measured(NamedTuple):
    """Seconds that this machine needs."""

    image: float  # to draw one
    step: float  # of training


class Forecast(NamedTuple):
    """Seconds of each part, and of the whole with the time that was already spent."""

    drawing: float
    training: float
    rest: float
    total: float


def forecast(measured: Measured, images: int, steps: int, spent: float) -> Forecast:
    """Seconds of a quickstart that has to draw `images` and to train `steps`; `spent` seconds are over already."""
    drawing, training = images * measured.image, steps * measured.step
    rest = REST_IN_IMAGES * measured.image
    return Forecast(drawing, training, rest, spent + drawing + training + rest)


def said(found: Forecast) -> str:
    """The forecast as a line."""
    named = ((found.drawing, "to draw"), (found.training, "to train"), (found.rest, "the rest"))
    parts = ", ".join(f"{duration(seconds)} {name}" for seconds, name in named if seconds > 0)
    return f"about {duration(found.total)} in all on this machine ({parts})"


def measure(config: Config, folder: Path) -> Measured:
    """Draw and train in `folder`, with the functions that the quickstart uses."""
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
    """Seconds of a step after the warm-up, from a log whose speeds are means since the first step."""
    ended = {line["step"]: line["step"] * batch / line["images_per_second"] for line in lines}
    return (ended[WARM_UP + MEASURED] - ended[WARM_UP]) / MEASURED


def steps_left(config: Config, run: Path) -> int:
    """The number of steps that the run in this folder has left."""
    taken = max((line["step"] for line in read_log(run / LOG)), default=0) if (run / LAST).exists() else 0
    return max(0, config.schedule.steps - taken)


def main() -> None:
    """Measure this machine and print the forecast."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("recipe", choices=sorted(RECIPES))
    parser.add_argument("--num-images", type=int, required=True, help="images to draw; 0 if they exist")
    parser.add_argument("--run", type=Path, required=True, help="the training's folder")
    parser.add_argument("--spent", type=float, default=0.0, help="seconds that were already spent")
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
