"""Plots of a reproduction: bars of the crossings, and the curve over k. Each dot is a seed."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

from runtime.files import atomic_path

from .rows import Row

_COLOURS = {"box": "#4477aa", "point": "#ee9944"}


def draw_crossings(rows: Sequence[Row], path: Path) -> None:
    """Draw a bar for each system, as high as the mean over its seeds, into a PNG file."""
    figure, axes = _figure((10, 4))
    shown = [row for row in rows if row.ap]
    for position, row in enumerate(shown):
        axes.bar(position, statistics.fmean(row.ap), width=0.7, color=_COLOURS[row.system.start], alpha=0.75)
        axes.plot([position] * len(row.ap), row.ap, "k.", markersize=5)
    labels = [row.system.label.replace(", ", ",\n") for row in shown]
    axes.set_xticks(range(len(shown)), labels, rotation=35, ha="right", rotation_mode="anchor", fontsize=8)
    for start, colour in _COLOURS.items():
        axes.bar(0, 0, color=colour, alpha=0.75, label=f"regress from the {start}")
    values = [value for row in shown for value in row.ap]
    if values:
        # The axis doesn't begin at 0, so that differences of a few points are visible.
        axes.set_ylim(max(0, min(values) - 5), max(values) + 2)
    axes.set_ylabel("AP")
    axes.legend(loc="upper left", fontsize=8)
    _save(figure, path)


def draw_k(rows: Sequence[Row], path: Path) -> None:
    """Draw AP over ATSS's k, for rows that differ in k alone, into a PNG file."""
    figure, axes = _figure((6, 3.5))
    shown = [row for row in rows if row.ap]
    axes.plot(
        [row.system.assignment.k for row in shown], [statistics.fmean(row.ap) for row in shown], color=_COLOURS["box"]
    )
    for row in shown:
        axes.plot([row.system.assignment.k] * len(row.ap), row.ap, "k.", markersize=5)
    axes.set(xlabel="k of ATSS", ylabel="AP", xticks=[row.system.assignment.k for row in shown])
    _save(figure, path)


def _figure(size: tuple[float, float]) -> tuple[Any, Any]:
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    return plt.subplots(figsize=size, layout="constrained")


def _save(figure: Any, path: Path) -> None:
    from matplotlib import pyplot as plt

    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=110)
    plt.close(figure)
