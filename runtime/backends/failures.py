"""Errors of failed inference; where memory ran out, the error names a batch that fits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ..images.device_canvases import Canvases
from .contract import BackendError, BatchTooLarge
from .onnx_file import first_line

# How ONNX Runtime (CPU, CUDA), OpenVINO, cuDNN and the C++ library say that memory ran out.
_SIGNS = (
    "allocate memory",
    "out of memory",
    "out_of_memory",
    "bad_alloc",
    "bad allocation",
    "available memory",
    "alloc_failed",
    "std::length_error",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a library's error says that memory ran out; decided by its text, since the classes don't tell."""
    return isinstance(error, MemoryError) or any(sign in str(error).lower() for sign in _SIGNS)


def inference_error(
    path: Path,
    library: str,
    error: Exception,
    run: Callable[[Any, np.ndarray], object],
    images: Canvases,
    image_sizes: np.ndarray,
    batch_min: int,
) -> BackendError:
    """The error to raise after `run(images, image_sizes)` failed with `error`.

    Where memory ran out, smaller batches are run until one fits, and the error is a BatchTooLarge that names it.
    """
    what = f"{path}: {library} failed on images {list(images.shape)}: {first_line(error)}"
    if not is_out_of_memory(error):
        return BackendError(what)
    fits = largest_fitting_batch(run, images, image_sizes, batch_min)
    if fits is None:
        return BatchTooLarge(f"{what}; no batch of this canvas fits: use a smaller canvas, or free memory", None)
    return BatchTooLarge(f"{what}; of this canvas a batch of {fits} fits: use --batch {fits}, or free memory", fits)


def largest_fitting_batch(
    run: Callable[[Any, np.ndarray], object], images: Canvases, image_sizes: np.ndarray, least: int
) -> int | None:
    """The largest of B/2, B/4, … ≥ `least` that runs; None where none runs, or one fails for another reason."""
    batch = len(images) // 2
    while batch >= max(1, least):
        try:
            run(images[:batch], image_sizes[:batch])
        except Exception as error:
            if not is_out_of_memory(error):
                return None
            batch //= 2
        else:
            return batch
    return None
