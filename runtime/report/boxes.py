"""The boxes of the page's images, in the pixels of their thumbnails."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from .content import ERROR_KINDS, DetectedBox, ErrorKind, ReportContent, TruthBox
from .thumbnails import Thumbnail

_FAR = 1e6  # px: no side of a box that can be drawn is farther away


@dataclass(frozen=True)
class Place:
    """A box in a thumbnail, px."""

    x: str
    y: str
    width: str
    height: str


@dataclass(frozen=True)
class ShownTruth:
    """An annotated box; `found_at` has the score of its detection by model, 0 for a missed object."""

    place: Place
    label: int
    region: bool
    found_at: tuple[str, ...]


@dataclass(frozen=True)
class ShownDetection:
    """A detection of one model. `changes` are names, "" where nothing changed."""

    place: Place
    label: int
    score: str
    kind: str
    changes: tuple[str, ...]


@dataclass(frozen=True)
class Shot:
    """One image of the page."""

    id: str
    name: str
    width: int
    height: int
    data: str
    problem: str
    badness: float
    changed: float
    truth: tuple[ShownTruth, ...]
    detections: tuple[tuple[ShownDetection, ...], ...]  # by model
    errors: tuple[tuple[tuple[ErrorKind, int], ...], ...]  # by model: how often each kind occurs above the score


def shots(thumbnails: Sequence[Thumbnail], content: ReportContent) -> list[Shot]:
    """The images of the page in the order of their thumbnails."""
    return [_shot(index, thumbnail, content) for index, thumbnail in enumerate(thumbnails, 1)]


def _shot(index: int, thumbnail: Thumbnail, content: ReportContent) -> Shot:
    image, scale = thumbnail.image, thumbnail.scale
    return Shot(
        id=f"i{index}",
        name=image.name,
        width=thumbnail.width,
        height=thumbnail.height,
        data=thumbnail.data,
        problem=thumbnail.problem,
        badness=image.badness,
        changed=image.changed,
        truth=tuple(
            ShownTruth(_place(one.box, scale), one.label, one.region, tuple(_score(s) for s in one.found_at))
            for one in image.truth
            if _is_drawable(one.box)
        ),
        detections=tuple(
            tuple(
                ShownDetection(
                    _place(one.box, scale),
                    one.label,
                    _score(one.score),
                    one.kind,
                    tuple(change or "" for change in one.changes),
                )
                for one in found
                if _is_drawable(one.box)
            )
            for found in image.detections
        ),
        errors=tuple(
            _errors(image.truth, found, model, content.min_score) for model, found in enumerate(image.detections)
        ),
    )


def _errors(
    truth: Sequence[TruthBox], detections: Sequence[DetectedBox], model: int, min_score: float
) -> tuple[tuple[ErrorKind, int], ...]:
    """The kinds of errors that occur, each with its number, of detections with at least `min_score`."""
    counts: Counter[str] = Counter(one.kind for one in detections if one.score >= min_score)
    known = [one for one in truth if not one.region and model < len(one.found_at)]
    counts["missed"] = sum(one.found_at[model] < min_score or one.found_at[model] == 0 for one in known)
    return tuple((kind, counts[kind]) for kind in ERROR_KINDS if counts[kind])


def _is_drawable(box: Sequence[float]) -> bool:
    return all(abs(side) < _FAR for side in box)  # not so for NaN


def _place(box: Sequence[float], scale: float) -> Place:
    x1, y1, x2, y2 = (float(side) * scale for side in box)
    return Place(_px(x1), _px(y1), _px(max(0.0, x2 - x1)), _px(max(0.0, y2 - y1)))


def _px(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


def _score(value: float) -> str:
    return f"{value:.3f}".rstrip("0").rstrip(".") or "0"
