"""Outlines of the eight classes of the built-in data set, as polygons.

An outline is a list of *parts*; a part is a list of contours float32 [n, 2] (x, y) filled together by the even-odd
rule (so a second contour is a hole); the parts are united. Classes differ by outline only, never by colour.
"""

from collections.abc import Sequence

import numpy as np

Part = list[np.ndarray]
Outline = list[Part]

# (name, COCO category id). The ids have gaps, like COCO's own, so that an id taken for an index is noticed.
CATEGORIES = (
    ("ellipse", 1),
    ("rectangle", 2),
    ("triangle", 3),
    ("star", 5),
    ("cross", 6),
    ("ring", 8),
    ("arrow", 11),
    ("letter", 13),
)

# Letters of straight strokes that don't look like another class in any rotation (so no I, L, T, V, X).
_LETTER_STROKES = (
    (((-0.4, 0.5), (0.0, -0.5)), ((0.0, -0.5), (0.4, 0.5)), ((-0.24, 0.15), (0.24, 0.15))),  # A
    (((-0.3, -0.5), (-0.3, 0.5)), ((-0.3, -0.5), (0.35, -0.5)), ((-0.3, 0.0), (0.25, 0.0)), ((-0.3, 0.5), (0.35, 0.5))),
    (((-0.38, -0.5), (-0.38, 0.5)), ((0.38, -0.5), (0.38, 0.5)), ((-0.38, 0.0), (0.38, 0.0))),  # H
    (((-0.32, -0.5), (-0.32, 0.5)), ((-0.32, 0.05), (0.35, -0.5)), ((-0.15, -0.05), (0.38, 0.5))),  # K
    (((-0.38, 0.5), (-0.38, -0.5)), ((-0.38, -0.5), (0.38, 0.5)), ((0.38, 0.5), (0.38, -0.5))),  # N
    (((-0.38, -0.5), (0.38, -0.5)), ((0.38, -0.5), (-0.38, 0.5)), ((-0.38, 0.5), (0.38, 0.5))),  # Z
)


def random_outline(label: int, rng: np.random.Generator) -> Outline:
    """A random outline of class `label` (index into CATEGORIES): about 1 unit large, upright, around the origin."""
    drawers = (_ellipse, _rectangle, _triangle, _star, _cross, _ring, _arrow, _letter)
    return drawers[label](rng)


def place(outline: Outline, angle: float, longer_side: float, centre_xy: tuple[float, float]) -> Outline:
    """Rotate an outline by `angle` (radians), scale its box's longer side to `longer_side`, and centre the box."""
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    turned = [[contour @ turn.T for contour in part] for part in outline]
    low, high = extent(turned)
    scale = longer_side / float((high - low).max())
    shift = np.asarray(centre_xy) - scale * (low + high) / 2
    return [[(contour * scale + shift).astype(np.float32) for contour in part] for part in turned]


def extent(outline: Outline) -> tuple[np.ndarray, np.ndarray]:
    """Smallest and largest (x, y) of an outline."""
    points = np.concatenate([contour for part in outline for contour in part])
    return points.min(axis=0), points.max(axis=0)


def _polygon(points: Sequence[tuple[float, float]]) -> Outline:
    return [[np.array(points, dtype=np.float64)]]


def _oval(width: float, height: float, points: int = 56) -> np.ndarray:
    turn = np.linspace(0, 2 * np.pi, points, endpoint=False)
    return np.stack([np.cos(turn) * width / 2, np.sin(turn) * height / 2], axis=1)


def _ellipse(rng: np.random.Generator) -> Outline:
    return [[_oval(1.0, rng.uniform(0.55, 1.0))]]


def _rectangle(rng: np.random.Generator) -> Outline:
    half = rng.uniform(0.38, 1.0) / 2
    return _polygon([(-0.5, -half), (0.5, -half), (0.5, half), (-0.5, half)])


def _triangle(rng: np.random.Generator) -> Outline:
    height, apex = rng.uniform(0.75, 1.15), rng.uniform(-0.3, 0.3)
    return _polygon([(-0.5, height / 2), (0.5, height / 2), (apex, -height / 2)])


def _star(rng: np.random.Generator) -> Outline:
    radii = np.tile([0.5, 0.5 * rng.uniform(0.38, 0.48)], 5)[:, None]
    turn = np.arange(10) * np.pi / 5 - np.pi / 2
    return [[radii * np.stack([np.cos(turn), np.sin(turn)], axis=1)]]


def _cross(rng: np.random.Generator) -> Outline:
    a, b = rng.uniform(0.12, 0.19), rng.uniform(0.4, 0.5)
    return _polygon(
        [
            (-a, -b),
            (a, -b),
            (a, -a),
            (0.5, -a),
            (0.5, a),
            (a, a),
            (a, b),
            (-a, b),
            (-a, a),
            (-0.5, a),
            (-0.5, -a),
            (-a, -a),
        ]
    )


def _ring(rng: np.random.Generator) -> Outline:
    height, hole = rng.uniform(0.75, 1.0), rng.uniform(0.5, 0.68)
    return [[_oval(1.0, height), _oval(hole, height * hole)]]


def _arrow(rng: np.random.Generator) -> Outline:
    shaft, head, neck = rng.uniform(0.1, 0.15), rng.uniform(0.32, 0.42), rng.uniform(0.0, 0.12)
    return _polygon(
        [(-0.5, -shaft), (neck, -shaft), (neck, -head), (0.5, 0.0), (neck, head), (neck, shaft), (-0.5, shaft)]
    )


def _letter(rng: np.random.Generator) -> Outline:
    strokes = _LETTER_STROKES[rng.integers(len(_LETTER_STROKES))]
    half, squeeze = rng.uniform(0.08, 0.12), rng.uniform(0.8, 1.0)
    return [[_stroke((ax * squeeze, ay), (bx * squeeze, by), half)] for (ax, ay), (bx, by) in strokes]


def _stroke(start: tuple[float, float], end: tuple[float, float], half_width: float) -> np.ndarray:
    # Lengthened by half its width at both ends, so that strokes that meet leave no notch.
    a, b = np.array(start), np.array(end)
    along = (b - a) / np.linalg.norm(b - a) * half_width
    across = np.array([-along[1], along[0]])
    a, b = a - along, b + along
    return np.stack([a - across, b - across, b + across, a + across])
