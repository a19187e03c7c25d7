"""A batch of canvases of which some are made in a GPU's memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np

from ..errors import UserError
from .device_array import DeviceImage


@dataclass(frozen=True)
class PlacedImage:
    """An image in a GPU's memory, and how it is laid on its canvas."""

    image: DeviceImage
    by: int  # 1, 2, 4 or 8: it is averaged over by × by pixels first (`preprocess.reduction`)
    resized_hw: tuple[int, int]


@dataclass(frozen=True)
class DeviceCanvases:
    """Canvases of one size, of which each is finished in host memory or still has to be made in a GPU's memory.

    It stands where an array uint8 [B, H, W, 3] may stand, as the backends of that GPU take it.
    """

    rows: tuple[np.ndarray | PlacedImage, ...]  # arrays are finished canvases, uint8 [H, W, 3]
    canvas_hw: tuple[int, int]
    pad_value: tuple[int, int, int]

    dtype = np.dtype(np.uint8)
    ndim = 4

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """[B, H, W, 3]."""
        return len(self.rows), *self.canvas_hw, 3

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, rows: slice) -> DeviceCanvases:
        return replace(self, rows=self.rows[rows])


Canvases: TypeAlias = "np.ndarray | DeviceCanvases"  # uint8 [B, H, W, 3]


def join_canvases(parts: Sequence[Canvases]) -> Canvases:
    """One batch of several whose canvases have one size."""
    on_device = [part for part in parts if isinstance(part, DeviceCanvases)]
    if not on_device:
        return np.concatenate([part for part in parts if isinstance(part, np.ndarray)])
    return replace(on_device[0], rows=tuple(row for part in parts for row in _rows(part)))


def finished_canvases(images: Sequence[DeviceImage]) -> DeviceCanvases:
    """Images of one size in a GPU's memory, each of which is a canvas already. Raises UserError where there is none."""
    if not images:
        raise UserError("an empty batch in a GPU's memory, expected at least one image")
    size_hw = images[0].size_hw
    return DeviceCanvases(tuple(PlacedImage(image, 1, size_hw) for image in images), size_hw, (0, 0, 0))


def _rows(canvases: Canvases) -> Sequence[np.ndarray | PlacedImage]:
    return canvases.rows if isinstance(canvases, DeviceCanvases) else list(canvases)
