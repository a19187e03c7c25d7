"""A confusion matrix as the page shows it: the pairs of classes that are confused most."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

BACKGROUND = "background"
MOST_CELLS = 25  # classes, background included, of a matrix that is shown whole


@dataclass(frozen=True)
class Pair:
    """How often objects of one class were detected as another; the classes' names, BACKGROUND for none."""

    truth: str
    detected: str
    count: int
    share: float  # of all objects of the class; of all detections on background where the truth is background


def most_confused(counts: np.ndarray, classes: Sequence[str], most: int = 20) -> list[Pair]:
    """The pairs off the diagonal with most counts, background included."""
    names = [*classes, BACKGROUND]
    wrong = np.array(counts)
    np.fill_diagonal(wrong, 0)
    rows = np.maximum(1, np.asarray(counts).sum(1))
    order = np.argsort(-wrong, axis=None, kind="stable")[:most]
    pairs = [(int(place) // len(names), int(place) % len(names)) for place in order]
    return [
        Pair(names[i], names[j], int(wrong[i, j]), float(wrong[i, j] / rows[i])) for i, j in pairs if wrong[i, j] > 0
    ]
