"""Which detections are kept: one filter for images, videos and evaluation, and its command-line options."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .bounds import Fraction, argument
from .detections import Detections, select
from .errors import UserError

KNOWN_NAMED = 20  # categories that the message about an unknown one lists


@dataclass(frozen=True)
class DetectionFilter:
    """Conditions that a detection must meet. The default keeps everything."""

    min_score: float = 0.0  # inclusive, 0–1; 0 keeps scores below 0 too, which other tools' results may have
    category_ids: tuple[int, ...] | None = None  # the data set's own ids; None: every category

    def mask(self, scores: np.ndarray, category_ids: np.ndarray) -> np.ndarray:
        """Which detections are kept, bool [n], by their scores [n] and category ids [n]."""
        kept = scores >= (self.min_score or -np.inf)
        return kept if self.category_ids is None else kept & np.isin(category_ids, self.category_ids)

    def apply(self, detections: Detections, category_ids: Sequence[int]) -> Detections:
        """The detections that are kept; `category_ids` are the manifest's, by class."""
        return select(detections, self.mask(detections.scores, np.asarray(category_ids)[detections.classes]))


KEEP_ALL = DetectionFilter()


def add_filter_arguments(parser: argparse.ArgumentParser, min_score: float) -> None:
    """Add the command-line options that `parse_filter` reads; `min_score` is the default of --score."""
    group = parser.add_argument_group("which detections are kept")
    group.add_argument(
        "--score", type=argument(Fraction), default=min_score, help="lowest score to keep, 0–1 (%(default)s)"
    )
    group.add_argument("--classes", nargs="+", default=[], metavar="ID", help="COCO category ids, or names, to keep")


def parse_filter(
    options: argparse.Namespace, categories: Mapping[int, str], source: object, written: Sequence[Any] | None = None
) -> DetectionFilter:
    """The filter that a command line asks for. Takes the categories and raises as `resolve_categories`."""
    return DetectionFilter(options.score, resolve_categories(options.classes, categories, source, written))


def resolve_categories(
    classes: Sequence[int | str], categories: Mapping[int, str], source: object, written: Sequence[Any] | None = None
) -> tuple[int, ...] | None:
    """Category ids of `classes`, each an id or a name; None if there are none. A number is always read as an id.

    `categories` maps the known category ids to their names; `source` names where they come from in messages. `written`
    has the ids as users know them, by category (`CocoDataset.written_category_ids`); None: as in `categories`. Raises
    UserError for an unknown class, and for a name that several categories share.
    """
    by_id = {str(given): number for given, number in zip(written or categories, categories, strict=True)}
    return tuple(_category_id(str(given), by_id, categories, source) for given in classes) or None


def _category_id(given: str, by_id: Mapping[str, int], categories: Mapping[int, str], source: object) -> int:
    if given in by_id:
        return by_id[given]
    ids = [category_id for category_id, name in categories.items() if name == given]
    if len(ids) > 1:
        raise UserError(f"class {given!r}: several categories of {source} have this name; give one of their ids: {ids}")
    if not ids:
        known = ", ".join(f"{text} {categories[number]}" for text, number in list(by_id.items())[:KNOWN_NAMED])
        more = f", … ({len(categories)} in all)" if len(categories) > KNOWN_NAMED else ""
        raise UserError(f"class {given!r}: no such category in {source}; known: {known}{more}")
    return ids[0]
