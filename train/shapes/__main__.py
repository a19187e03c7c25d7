"""Draw the built-in data set `shapes`: COCO-format images to train and test on without a download.

    python -m train.shapes OUT --train 2000 --val 300 --seed 0 --size 256

writes OUT/train/*.jpg, OUT/train.json, the same for val, and OUT/shapes.json, the settings it was made with.
"""

from __future__ import annotations

if __name__ == "__main__":  # before the other imports, which take their time: Ctrl-C ends them in one line
    from runtime.interrupts import end_at_once

    end_at_once()

from pathlib import Path

from runtime.bounds import argument
from runtime.command_names import program
from runtime.command_parser import CommandParser
from runtime.errors import run_main

from .dataset import Images, Seed, Settings, Size, generate


def main() -> None:
    """The command: write the data set and say so."""
    parser = CommandParser(prog=program("train.shapes"), description="Draw the built-in data set `shapes`.")
    parser.add_argument(
        "out", type=Path, metavar="OUT", help="folder to write; it must be new, empty or a shapes data set"
    )
    parser.add_argument("--train", type=argument(Images), default=Settings.train, help="training images (%(default)s)")
    parser.add_argument("--val", type=argument(Images), default=Settings.val, help="held-back images (%(default)s)")
    parser.add_argument("--seed", type=argument(Seed), default=Settings.seed, help="seed of the images (%(default)s)")
    parser.add_argument(
        "--size", type=argument(Size), default=Settings.size, help="longer side in pixels (%(default)s)"
    )
    parser.add_argument("--force", action="store_true", help="replace a shapes data set of other settings at OUT")
    given = parser.parse_args()
    settings = Settings(given.train, given.val, given.seed, given.size)
    if generate(given.out, settings, force=given.force):
        print(f"wrote {settings.train} training and {settings.val} validation images to {given.out}")
    else:
        print(f"{given.out}: already complete with these settings, nothing to do")


if __name__ == "__main__":
    run_main(main)
