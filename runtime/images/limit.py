"""The option that sets the largest image to be decoded, the same for every command that reads image files."""

from __future__ import annotations

import argparse
import math

from ..bounds import Megapixels, argument
from .decoding import MAX_PIXELS

MAX_MEGAPIXELS = MAX_PIXELS / 1e6


def add_limit_argument(parser: argparse.ArgumentParser) -> None:
    """Add --max-megapixels; `max_pixels` turns its value into pixels."""
    parser.add_argument(
        "--max-megapixels",
        type=argument(Megapixels),
        default=MAX_MEGAPIXELS,
        metavar="N",
        help="read no image above this size (%(default)g)",
    )


def max_pixels(megapixels: float) -> int:
    """The largest number of pixels that a limit in megapixels lets pass, at least 1."""
    return max(1, math.floor(megapixels * 1e6))
