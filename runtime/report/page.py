"""Renders a report's content as one HTML file that needs no network: templates, charts, thumbnails, styles, script."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any

import numpy as np

from ..coco import METRIC_NAMES
from ..coco.report import percent
from ..errors import UserError
from ..terminal import printable
from . import charts, findings, numbers
from .boxes import Shot, shots
from .confusion import most_confused
from .content import CHANGE_KINDS, ERROR_KINDS, ReportContent
from .thumbnails import chosen_images, make_thumbnails

MEANINGS = {
    "AP": "mean over IoU 0.50 to 0.95",
    "AP50": "at IoU 0.50",
    "AP75": "at IoU 0.75",
    "APs": "small objects, under 32² px",
    "APm": "medium objects",
    "APl": "large objects, over 96² px",
    "AR1": "recall with 1 detection per image",
    "AR10": "recall with 10 detections per image",
    "AR100": "recall with 100 detections per image",
    "ARs": "recall of small objects",
    "ARm": "recall of medium objects",
    "ARl": "recall of large objects",
}
KIND_MEANINGS = {
    "class": "right place (IoU 0.5 or more), wrong class",
    "localisation": "right class, box not exact enough (IoU 0.1 to 0.5)",
    "both": "wrong class, and box not exact enough",
    "duplicate": "the object already has a better detection",
    "background": "no object there (IoU under 0.1)",
    "missed": "an object that no detection accounts for",
}
CHANGE_MEANINGS = {
    "gained": "only the other model has it",
    "lost": "only the first model has it",
    "moved": "in both, with another box",
    "rescored": "in both, with another score",
}


@dataclass(frozen=True)
class Section:
    """A part of the page."""

    id: str
    title: str
    template: str
    missing: str = ""  # why it is left out; empty: it is shown


def render(content: ReportContent) -> str:
    """The page as HTML text. Raises UserError where Jinja or matplotlib is missing."""
    _require("jinja2")
    _require("matplotlib")
    pictures = shots(
        make_thumbnails(chosen_images(content.images), content.thumbnail_bytes, content.max_pixels), content
    )
    parts = list(sections(content, pictures))
    script = _asset("report.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
    environment = _environment()
    return str(
        environment.get_template("page.html").render(
            content=content,
            models=content.models,
            first=content.models[0],
            several=len(content.models) > 1,
            sections=[part for part in parts if not part.missing],
            missing=[part for part in parts if part.missing],
            findings=findings.find(content),
            metric_names=METRIC_NAMES,
            meanings=MEANINGS,
            kinds=ERROR_KINDS,
            kind_meanings=KIND_MEANINGS,
            change_kinds=CHANGE_KINDS,
            change_meanings=CHANGE_MEANINGS,
            shots=pictures,
            unread=sum(bool(shot.problem) for shot in pictures),
            style=environment.filters["raw"](_asset("report.css")),
            script=environment.filters["raw"](script),
            script_hash=digest,
        )
    )


def sections(content: ReportContent, pictures: list[Shot]) -> Iterator[Section]:
    """All sections in their order; those with nothing to show say why."""
    models = content.models
    one_model = "" if len(models) > 1 else "there is one model"
    yield Section("summary", "Summary", "summary.html")
    yield Section("metrics", "Metrics and object sizes", "metrics.html")
    yield Section("classes", "Classes", "classes.html")
    known = any(model.errors for model in models)
    yield Section("errors", "Errors by kind", "errors.html", "" if known else "the errors were not sorted by kind")
    nothing = "there are no images" if not content.images else "no thumbnail fits the budget"
    yield Section("images", "Images, worst first", "images.html", "" if pictures else nothing)
    compared = any(model.changes is not None for model in models)
    reason = one_model or "the models were not compared"
    yield Section("changes", "What changed", "changes.html", "" if compared else reason)
    reason = "there are no curves"
    curved = any(model.curves is not None for model in models)
    yield Section("curves", "Precision and recall", "curves.html", "" if curved else reason)
    yield Section("threshold", "Score threshold", "threshold.html", "" if any(m.f1 for m in models) else reason)
    known = any(model.reliability is not None for model in models)
    yield Section("calibration", "Calibration of scores", "calibration.html", "" if known else "it was not measured")
    known = any(model.confusion is not None for model in models)
    yield Section("confusion", "Confusion matrix", "confusion.html", "" if known else "it was not counted")
    yield Section("data", "Data set", "data.html")
    yield Section("run", "Training run", "run.html", "" if content.runs else "no training run was given")
    fast = any(model.speed for model in models)
    yield Section("speed", "Speed by stage", "speed.html", "" if fast else "no model was run")
    known = any(model.manifest for model in models)
    yield Section("manifest", "Manifests", "manifest.html", "" if known else "results files have none")
    yield Section("conditions", "How this report was made", "conditions.html")


def _environment() -> Any:
    """Jinja with autoescape, which refuses names that it doesn't know. Foreign texts show what they hide."""
    import jinja2
    from markupsafe import Markup

    def shown(value: Any) -> Any:
        """Control characters and marks of the writing direction as escapes."""
        return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value

    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(lambda name: _asset(f"templates/{name}")),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=shown,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    ids: dict[str, int] = {}

    def key(prefix: str) -> str:
        ids[prefix] = ids.get(prefix, 0) + 1
        return f"{prefix}-{ids[prefix]}"

    drawing: dict[str, Callable[..., Any]] = {
        name: _safe(getattr(charts, name), Markup)
        for name in (
            "curves_by_iou",
            "curves_by_model",
            "f1_chart",
            "reliability_chart",
            "histogram",
            "training_chart",
        )
    }
    environment.globals.update(
        **drawing,
        key=key,
        precision_rows=numbers.precision_rows,
        threshold_rows=numbers.threshold_rows,
        reliability_rows=numbers.reliability_rows,
        small_curves=charts.small_curves,
        small=charts.SMALL,
        most_confused=most_confused,
        is_clear=findings.is_clear,
        zip=zip,
        float=float,
        int=int,
    )
    environment.filters.update(
        raw=Markup,
        percent=percent,
        points=findings.points,
        count=lambda value: f"{int(value):,}",
        total=lambda values: int(np.sum(np.asarray(values))) if len(values) else 0,
        most=lambda values: max((float(value) for value in values), default=0.0),
        flat=lambda mapping: list(_flat(mapping)),
        pretty=lambda mapping: json.dumps(mapping, indent=2, ensure_ascii=False, default=str),
        lines=lambda text: Markup("\n").join(printable(line) for line in text.split("\n")),
    )
    return environment


def _safe(draw: Callable[..., str], markup: type) -> Callable[..., Any]:
    return lambda *given, **named: markup(draw(*given, **named))


def _flat(settings: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, str]]:
    """Nested settings as dotted names and texts."""
    for name, value in settings.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{before}{name}.")
        elif isinstance(value, list | tuple):
            yield f"{before}{name}", ", ".join(map(str, value)) or "none"
        else:
            yield f"{before}{name}", "none" if value is None else str(value)


def _asset(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


def _require(package: str) -> None:
    try:
        __import__(package)
    except ImportError as error:
        raise UserError(
            f"a report needs {package}, which cannot be imported ({error}); pip install 'atss-toolkit[report]'"
        ) from error
