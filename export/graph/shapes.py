"""The batches and canvases that an exported graph takes. An engine's are chosen within them (`trt/profiles.py`)."""

from __future__ import annotations

from runtime.errors import UserError
from runtime.manifest import InputShapes, Preprocess
from train.model.backbones import COARSEST

MIN_SIDE, MAX_SIDE = 64, 1344  # px, of a dynamic canvas; rounded up to a multiple of the size divisor


class ExportError(UserError):
    """A checkpoint that can't be exported as asked."""


def input_shapes(preprocess: Preprocess, batch_max: int, canvas_hw: tuple[int, int] | None = None) -> InputShapes:
    """The batches (1 to `batch_max`) and canvases to export for: `canvas_hw` px alone, or else a range.

    Raises ExportError for a canvas that the network doesn't take or that is too small for resized images.
    """
    divisor = preprocess.size_divisor
    if divisor % COARSEST:
        raise ExportError(
            f"the checkpoint's preprocess.size_divisor is {divisor}, which its network doesn't take; expected a "
            f"multiple of {COARSEST}: train it with one"
        )
    if not 1 <= batch_max <= 1024:
        raise ExportError(f"--batch-max {batch_max}: expected 1 to 1024")
    if canvas_hw is None:
        least, largest = round_up(MIN_SIDE, divisor), round_up(max(MAX_SIDE, preprocess.long_side), divisor)
        return InputShapes(1, batch_max, least, largest, least, largest)
    height, width = canvas_hw
    if height < divisor or width < divisor or height % divisor or width % divisor:
        raise ExportError(f"--canvas {height} {width}: expected height and width in multiples of {divisor}")
    if min(height, width) < preprocess.short_side:
        raise ExportError(
            f"--canvas {height} {width}: images are resized to a shorter side of {preprocess.short_side} px and "
            f"would not fit; give at least {round_up(preprocess.short_side, divisor)} for both"
        )
    return InputShapes(1, batch_max, height, height, width, width)


def round_up(side: int, divisor: int) -> int:
    """The least multiple of `divisor` that is no smaller than `side`."""
    return -(-side // divisor) * divisor
