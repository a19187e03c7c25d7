"""Stand-in backends whose speeds are known: only they let the clock run."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from runtime.backends import BackendError
from runtime.detections import RawOutputs

from .fakes import RedBackend


class Clock:
    """Time that passes only in stand-in backends."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Timed(RedBackend):
    """A backend whose calls take these seconds each, the last of them for ever; an error ends the call instead."""

    def __init__(self, clock: Clock, *takes: float | BackendError, score: float = 0.5) -> None:
        super().__init__()
        self._clock, self._takes, self._score = clock, list(takes), score

    def infer(self, images: np.ndarray, image_sizes: np.ndarray, **options: Any) -> RawOutputs:
        took = self._takes.pop(0) if len(self._takes) > 1 else self._takes[0]
        if isinstance(took, BackendError):
            raise took
        self._clock.now += took
        found = super().infer(images, image_sizes, **options)
        return replace(found, detection_scores=np.full_like(found.detection_scores, self._score))
