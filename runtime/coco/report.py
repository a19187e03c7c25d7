"""Metrics and speeds as text and JSON, of one model or of several side by side."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..manifest import Manifest
from .metrics import NOTHING, CocoMetrics, is_measured
from .results import Results
from .run import Speed
from .scoring import METRIC_NAMES


@dataclass(frozen=True)
class ComparedModel:
    """One of several models that ran side by side."""

    artifact: str
    manifest: Manifest
    description: str  # of the backend that ran it
    metrics: CocoMetrics
    speed: Speed
    results: Results
    image_ids: list[int]  # that were scored


def percent(value: float, digits: int = 1) -> str:
    """A metric of 0–1 in percent; a dash where it is −1 and there was nothing to measure."""
    return "–" if value < 0 else f"{100 * value:.{digits}f}"


def metrics_as_json(metrics: CocoMetrics, speed: Speed | None = None) -> str:
    """The twelve metrics in 0–1 (−1: nothing to measure) under COCO's names, AP per class, and the run's speed."""
    content: dict[str, Any] = {**metrics.values, "per_class": metrics.per_class, "images": metrics.images}
    if speed is not None:
        content |= {"images_per_second": round(speed.images_per_second, 3), "skipped": len(speed.skipped)}
        content |= _network(speed)
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def metrics_as_table(metrics: CocoMetrics) -> str:
    """The twelve metrics and AP per class, in percent, as text; first of all that there was nothing to measure."""
    width = max(map(len, metrics.per_class), default=0)
    lines = [
        *([] if is_measured(metrics.values) else [NOTHING]),
        f"COCO box metrics in percent, on {metrics.images} images (–: nothing to measure)",
        " ".join(f"{name:>6}" for name in METRIC_NAMES),
        " ".join(f"{percent(metrics.values[name]):>6}" for name in METRIC_NAMES),
        "",
        "AP per class",
        *(f"  {name:<{width}} {percent(value):>6}" for name, value in metrics.per_class.items()),
    ]
    return "\n".join(lines)


def comparison_as_json(models: Sequence[ComparedModel], conditions: dict[str, Any]) -> str:
    """Each model's metrics, difference to the first model and speed, and the conditions of the run."""
    first = models[0]
    entries = [
        {
            "artifact": model.artifact,
            "precision": model.manifest.precision,
            "backend": model.description,
            **model.metrics.values,
            "per_class": model.metrics.per_class,
            "images": model.metrics.images,
            "difference": {name: _difference(model, first, name) for name in METRIC_NAMES},
            **_network(model.speed),
            "times_as_fast": _round(times_as_fast(model, first)),
        }
        for model in models
    ]
    content = {"artifacts": entries, "skipped": len(first.speed.skipped), "conditions": conditions}
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def comparison_as_table(models: Sequence[ComparedModel]) -> str:
    """A row per model: metrics in percent, AP minus that of the first model, the network's speed and its ratio."""
    first, shown = models[0], METRIC_NAMES[:6]
    head = ["", "precision", *shown, "ΔAP", "img/s", "× first"]
    rows = [head]
    for model in models:
        difference = _difference(model, first, "AP")
        speed, ratio = model.speed.network_images_per_second, times_as_fast(model, first)
        rows.append(
            [
                model.artifact,
                model.manifest.precision,
                *(percent(model.metrics.values[name]) for name in shown),
                "" if model is first else "–" if difference is None else f"{100 * difference:+.2f}",
                f"{speed:.1f}",
                "" if model is first or ratio is None else f"{ratio:.2f}",
            ]
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        " ".join(f"{cell:{'<' if i < 2 else '>'}{widths[i]}}" for i, cell in enumerate(row)).rstrip() for row in rows
    ]
    return "\n".join(
        [
            *([] if is_measured(first.metrics.values) else [NOTHING]),
            f"COCO box metrics in percent, on {first.metrics.images} images (–: nothing to measure)",
            *lines,
            "",
            "img/s: of the network's calls, one model at a time, in turn per batch; × first: median over the batches",
        ]
    )


def times_as_fast(model: ComparedModel, first: ComparedModel) -> float | None:
    """Median over batches of the first model's time divided by this model's; taking turns cancels disturbances."""
    pairs = zip(first.speed.seconds_per_image, model.speed.seconds_per_image, strict=True)
    ratios = [theirs / ours for theirs, ours in pairs if ours > 0]
    return statistics.median(ratios) if ratios else None


def _network(speed: Speed) -> dict[str, Any]:
    return {
        "network_images_per_second": round(speed.network_images_per_second, 3),
        "network_seconds": round(speed.seconds_network, 6),
    }


def _difference(model: ComparedModel, first: ComparedModel, name: str) -> float | None:
    """Difference of a metric, in 0–1; None if either model has nothing to measure."""
    values = model.metrics.values[name], first.metrics.values[name]
    return None if min(values) < 0 else values[0] - values[1]


def _round(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
