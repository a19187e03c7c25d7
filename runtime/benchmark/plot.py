"""Draws a benchmark: milliseconds per image by stage, and images/s of the pipeline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..errors import UserError
from ..files import atomic_path
from ..lettering import texts_for_matplotlib
from ..stopwatch import STAGES
from .report import Report


def require_matplotlib() -> Any:
    """Import matplotlib, which only the plot needs. Raises UserError where it isn't installed."""
    try:
        import matplotlib
    except ImportError as error:
        raise UserError(
            f"--plot needs matplotlib, which cannot be imported ({error}); pip install matplotlib, or use --json, "
            "which has the same figures"
        ) from error
    return matplotlib


def plot(report: Report, path: Path) -> None:
    """Draw the report into a file; the suffix chooses the format (.png, .svg, .pdf). Raises UserError, WriteError."""
    matplotlib = require_matplotlib()
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    rows = report.figures
    names = texts_for_matplotlib(Path(figures.artifact).name for figures in rows)
    labels = [f"{name}\nbatch {figures.batch}" for name, figures in zip(names, rows, strict=True)]
    places = list(range(len(rows)))
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(12, 1.6 + 0.6 * len(rows)), layout="constrained", sharey=True, width_ratios=(3, 2)
    )
    begin = [0.0] * len(rows)
    for stage in (*STAGES, "rest"):
        widths = [figures.stage_ms[stage].mean / figures.batch for figures in rows]
        if any(width > 0 for width in widths):
            left.barh(places, widths, left=begin, label=stage, height=0.6)
            begin = [low + width for low, width in zip(begin, widths, strict=True)]
    left.set(xlabel="ms per image, mean, one stage after another", yticks=places, yticklabels=labels)
    left.invert_yaxis()
    left.legend(fontsize="small")
    rates = [figures.pipeline_images_per_second for figures in rows]
    ends = [[rate.p50 - rate.least for rate in rates], [rate.most - rate.p50 for rate in rates]]
    right.barh(places, [rate.p50 for rate in rates], xerr=ends, height=0.6, color="tab:gray", capsize=3)
    right.set(xlabel="images/s of the pipeline, rounds: median, range", xlim=(0, None))
    machine = report.machine
    figure.suptitle(
        f"{machine.cpu}, {machine.usable_processors} processors; {report.images.count} images, "
        f"{report.settings.rounds} rounds; {report.run.date}",
        fontsize="small",
    )
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=110)
    plt.close(figure)
