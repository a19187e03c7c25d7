"""The option that sets the largest image to be decoded, the same for every command that reads image files."""

from __future__ import annotations

import argparse
import math

from .decoding import MAX_PIXELS

MAX_MEGAPIXELS = MAX_PIXELS / 1e6
_MOST = 1e6  # megapixels; no decoder takes larger images


def add_limit_argument(parser: argparse.ArgumentParser) -> None:
    """Add --max-megapixels; `max_pixels` turns its value into pixels."""
    parser.add_argument(
        "--max-megapixels",
        type=megapixels,
        default=MAX_MEGAPIXELS,
        metavar="N",
        help="read no image above this size (%(default)g)",
    )


def megapixels(text: str) -> float:
    """A limit as a command line has it. Raises ArgumentTypeError unless it is a number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value <= _MOST:  # also for NaN
        raise argparse.ArgumentTypeError(f"{text} megapixels: expected a number above 0, at most {_MOST:g}")
    return value


def max_pixels(megapixels: float) -> int:
    """The largest number of pixels that a limit in megapixels lets pass, at least 1."""
    return max(1, math.floor(min(megapixels, _MOST) * 1e6))
