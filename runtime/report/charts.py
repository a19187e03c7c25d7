"""The charts of the page: matplotlib draws them as SVG. They hold no foreign text; legends are the page's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from . import svg
from .content import Floats, ModelContent, PrecisionCurves, Reliability, ScoreCurve, Series

RECALLS = np.linspace(0.0, 1.0, 101)  # COCO's
SMALL = (100.0, 62.0)  # width and height of the small charts, one for each class
_INCHES = (4.7, 3.2)
_TOLERANCE = 0.004  # of the axes' length: a third of a pixel


@dataclass(frozen=True)
class SmallChart:
    """Precision over recall of one class as paths in a box of `SMALL`: one for each model at IoU 0.50 and at 0.75."""

    label: int  # class index
    at_50: tuple[str, ...]  # by model
    at_75: tuple[str, ...]


def curves_by_iou(curves: PrecisionCurves, key: str) -> str:
    """Mean precision of all classes over recall, a line for each IoU threshold."""
    means = _mean_of_measured(np.asarray(curves.precision))

    def lines(axes: Any) -> None:
        for place, iou in enumerate(curves.ious):
            is_named = round(100 * iou) in (50, 75, 90)
            axes.plot(
                *_unit_line(RECALLS, means[place]),
                color=svg.SERIES[0],
                linewidth=1.8 if is_named else 0.8,
                alpha=1 if is_named else 0.55,
            )
            if is_named:
                _name_line(axes, means[place], f"{iou:.2f}")

    text = ", ".join(f"IoU {iou:.2f}: area {means[t].mean():.3f}" for t, iou in enumerate(curves.ious))
    return _drawn(key, "Precision over recall by IoU", f"Mean over the classes. {text}.", "recall", "precision", lines)


def curves_by_model(models: Sequence[PrecisionCurves | None], iou: float, key: str) -> str:
    """Mean precision of all classes over recall at one IoU threshold, a line for each model that has curves."""
    known = [(index, _at_iou(curves, iou)) for index, curves in enumerate(models) if curves is not None]

    def lines(axes: Any) -> None:
        for index, precision in known:
            axes.plot(*_unit_line(RECALLS, _mean_of_measured(precision)), color=model_color(index), linewidth=1.6)

    areas = ", ".join(f"model {index + 1}: area {_mean_of_measured(p).mean():.3f}" for index, p in known)
    title = f"Precision over recall at IoU {iou:.2f} by model"
    return _drawn(key, title, f"Mean over the classes. {areas}.", "recall", "precision", lines)


def small_curves(models: Sequence[ModelContent], classes: int) -> list[SmallChart]:
    """Precision over recall of each class that some model was measured on; models without curves have empty paths."""
    charts = []
    for label in range(classes):
        paths = []
        for iou in (0.5, 0.75):
            found = []
            for model in models:
                precision = None if model.curves is None else _at_iou(model.curves, iou)[:, label]
                if precision is None or precision[0] < 0:
                    found.append("")
                else:
                    found.append(svg.path_of(*_unit_line(RECALLS, precision, 4 * _TOLERANCE), *SMALL))
            paths.append(tuple(found))
        if any(paths[0]):
            charts.append(SmallChart(label, paths[0], paths[1]))
    return charts


def f1_chart(curve: ScoreCurve, key: str) -> str:
    """F1, precision and recall over the score threshold; the best threshold is marked."""
    order = np.argsort(np.asarray(curve.scores), kind="stable")
    scores = np.asarray(curve.scores)[order]

    def lines(axes: Any) -> None:
        for values, color, width in (
            (curve.precision, svg.SERIES[1], 1.2),
            (curve.recall, svg.SERIES[2], 1.2),
            (curve.f1, svg.SERIES[0], 2.2),
        ):
            axes.plot(*_unit_line(scores, np.asarray(values)[order]), color=color, linewidth=width)
        axes.axvline(curve.best_score, color=svg.INK, linewidth=0.8, linestyle=(0, (3, 3)))
        axes.plot([curve.best_score], [curve.best_f1], "o", color=svg.SERIES[0], markersize=6)

    text = f"F1 is highest, {curve.best_f1:.3f}, at a threshold of {curve.best_score:.3f}."
    return _drawn(key, "F1, precision and recall over the score threshold", text, "score threshold", "", lines)


def reliability_chart(found: Reliability, key: str) -> str:
    """Share of right detections over their score; a well calibrated model lies on the diagonal."""
    confidence, precision = np.asarray(found.confidence), np.asarray(found.precision)
    shown = confidence >= 0

    def lines(axes: Any) -> None:
        axes.plot([0, 1], [0, 1], color=svg.MUTED, linewidth=0.8, linestyle=(0, (3, 3)))
        axes.vlines(confidence[shown], confidence[shown], precision[shown], color=svg.BAD, linewidth=2, alpha=0.5)
        axes.plot(confidence[shown], precision[shown], "o-", color=svg.SERIES[0], linewidth=1.6, markersize=4)

    text = f"Expected calibration error {found.error:.3f}."
    return _drawn(key, "Share of right detections over their score", text, "mean score", "share that is right", lines)


def histogram(found: Reliability, key: str) -> str:
    """Numbers of right and wrong detections by score, on a logarithmic scale where they differ much."""
    edges, hits, misses = np.asarray(found.edges), np.asarray(found.hits), np.asarray(found.misses)
    most = int(max(hits.max(initial=0), misses.max(initial=0)))

    def bars(axes: Any) -> None:
        width = np.diff(edges)
        axes.bar(edges[:-1], misses, width, align="edge", color=svg.BAD, alpha=0.75, linewidth=0)
        axes.stairs(hits, edges, color=svg.GOOD, linewidth=1.8)
        if most > 1000:
            axes.set_yscale("symlog", linthresh=10)
            axes.minorticks_off()
        axes.set_ylim(0, max(1, most) * (1.6 if most > 1000 else 1.05))

    text = f"{int(hits.sum())} right and {int(misses.sum())} wrong detections at IoU 0.5."
    return _drawn(key, "Right and wrong detections by score", text, "score", "detections", bars)


def training_chart(series: Sequence[Series], key: str, title: str, *, is_percent: bool = False) -> str:
    """Values over training steps, a line for each series. Negative values were not measured and are left out."""

    def lines(axes: Any) -> None:
        for index, one in enumerate(series):
            steps, values = np.asarray(one.steps, float), np.asarray(one.values, float) * (100 if is_percent else 1)
            shown = np.isfinite(values) & (values >= 0 if is_percent else True)
            marker = "o" if shown.sum() < 20 else ""
            points = _sampled(np.stack([steps[shown], values[shown]], 1))
            axes.plot(*points.T, marker=marker, color=model_color(index), linewidth=1.6 if index == 0 else 1.1)
        axes.set_xlim(left=0)
        axes.set_ylim(bottom=0)
        axes.margins(x=0.02)

    lasts = [f"line {i + 1} ends at {float(s.values[-1]):.4g}" for i, s in enumerate(series) if len(s.values)]
    return _drawn(key, title, f"{', '.join(lasts)}.", "step", "percent" if is_percent else "loss", lines, unit=False)


def model_color(index: int) -> str:
    """The colour of a model's lines. It repeats after as many models as there are colours."""
    return svg.SERIES[index % len(svg.SERIES)]


def _drawn(key: str, title: str, text: str, x: str, y: str, draw: Callable[[Any], None], *, unit: bool = True) -> str:
    """A chart with the look of all of them; both axes are 0–1 if `unit` and `draw` sets no limits."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context({"font.size": 9, "axes.linewidth": 0.8, "path.simplify": False}):
        figure = Figure(figsize=_INCHES, layout="constrained")
        axes = figure.add_subplot()
        if unit:
            axes.set(xlim=(0, 1), ylim=(0, 1.02))
        draw(axes)
        axes.set_xlabel(x, color=svg.MUTED)
        axes.set_ylabel(y, color=svg.MUTED)
        axes.grid(color=svg.GRID, linewidth=0.7)
        axes.set_axisbelow(True)
        axes.tick_params(colors=svg.MUTED, length=0, pad=5)
        for side, spine in axes.spines.items():
            spine.set_visible(side == "bottom")
            spine.set_color(svg.MUTED)
        return svg.text_of(figure, key, title, text)


def _unit_line(x: Floats, y: Floats, tolerance: float = _TOLERANCE) -> tuple[np.ndarray, np.ndarray]:
    points = svg.thinned(np.clip(np.stack([np.asarray(x, float), np.asarray(y, float)], 1), 0, 1), tolerance)
    return points[:, 0], points[:, 1]


def _sampled(points: np.ndarray) -> np.ndarray:
    """The points of a line without those that nobody sees, measured in the line's own ranges."""
    if len(points) < 3:
        return points
    ranges = np.ptp(points, axis=0)
    ranges[ranges == 0] = 1
    return svg.thinned(points / ranges, _TOLERANCE / 2) * ranges


def mean_precision(curves: PrecisionCurves, iou: float) -> np.ndarray:
    """Mean precision of the measured classes at COCO's 101 recalls, at one IoU threshold."""
    return _mean_of_measured(_at_iou(curves, iou))


def _at_iou(curves: PrecisionCurves, iou: float) -> np.ndarray:
    """Precision [101, K] at the threshold nearest to `iou`."""
    return np.asarray(curves.precision[int(np.argmin(np.abs(np.asarray(curves.ious) - iou)))])


def _mean_of_measured(precision: np.ndarray) -> np.ndarray:
    """Mean over the classes [..., K] that have objects; 0 where none has."""
    measured = precision.reshape(-1, precision.shape[-1])[:1] >= 0
    if not measured.any():
        return np.zeros(precision.shape[:-1])
    return np.asarray(precision[..., measured[0]].mean(-1))


def _name_line(axes: Any, precision: np.ndarray, name: str) -> None:
    """Write a line's name where it passes the lower half of its height, below it."""
    place = int(np.argmax(precision < max(0.04, 0.45 * precision.max(initial=0))))
    axes.annotate(
        name,
        (RECALLS[place], precision[place]),
        xytext=(-4, 0),
        textcoords="offset points",
        ha="right",
        va="top",
        fontsize=8,
        color=svg.INK,
    )
