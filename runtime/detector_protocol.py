"""What evaluation needs of a detector, so that a detector in torch is scored like a deployed one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeVar

import numpy as np

from .detections import Detections
from .images import Decoded
from .manifest import Manifest, Preprocess
from .stopwatch import Stopwatch

Prepared = TypeVar("Prepared")


class DetectorProtocol(Protocol[Prepared]):
    """What evaluation needs of a detector. `prepare` and `detect_prepared` may be called from several threads."""

    @property
    def manifest(self) -> Manifest:
        """The deployed model's manifest."""
        ...

    @property
    def concurrency(self) -> int:
        """How many calls of `detect_prepared` gain from running at once."""
        ...

    def canvas_hw(self, image_hw: tuple[int, int]) -> tuple[int, int]:
        """Height and width of the canvas for an image of this size. Raises BackendError if the graph takes none."""
        ...

    @property
    def load_preprocess(self) -> Preprocess | None:
        """Preprocessing that files are loaded for (`preprocess.load`), so that pixels equal training's. None: all."""
        ...

    def prepare(self, image: np.ndarray | Decoded) -> Prepared:
        """Do the work that an image needs before its batch is known."""
        ...

    def detect_prepared(self, images: Sequence[Prepared], stopwatch: Stopwatch | None = None) -> list[Detections]:
        """Detections of prepared images, which share a canvas; the stages are added to `stopwatch`."""
        ...
