"""The model card of a report's first model: Markdown with the metadata that Hugging Face reads.

Only facts of the files are stated. What a person has to decide or know is marked as not stated.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ..terminal import printable
from .content import Interval, ModelContent, ReportContent

NOT_STATED = "Not stated: to be filled in by whoever publishes the model."
# What JSON writes as it is, and YAML takes for the end of a line or refuses.
_NOT_IN_YAML = re.compile("[\x7f-\x9f\u2028\u2029\ud800-\udfff\ufeff\ufffe\uffff]")
_MARKDOWN = re.compile(r"([\\`*_{}\[\]<>#|~!])")
_METRICS = {"AP": "AP, IoU 0.50 to 0.95", "AP50": "AP at IoU 0.50", "AP75": "AP at IoU 0.75"}


def model_card(content: ReportContent) -> str:
    """The card of the report's first model as text."""
    model = content.models[0]
    lines = ["---", *_metadata(content, model), "---", "", f"# {_plain(model.name)}", ""]
    lines += ["An object detector.", "", "## Model", "", *_table(("fact", "value"), model.facts.items())]
    lines += ["", "## Intended use", "", NOT_STATED, "", "## Licence", "", NOT_STATED, "", "## Training", ""]
    lines += _training(content)
    lines += ["", "## Evaluation", "", *_evaluation(content, model)]
    lines += ["", "## Errors", "", *_errors(model)]
    if model.speed is not None:
        lines += ["", "## Speed", "", *_table(("condition", "value"), model.speed.conditions.items())]
        stages = ((stage.name, f"{stage.median_ms:.2f}") for stage in model.speed.stages)
        lines += ["", *_table(("stage", "ms per image, median"), stages)]
    lines += ["", "## Limitations", ""]
    lines += ["Figures hold for images like those of the evaluation. Anything further is not stated."]
    if problems := [*content.data.problems, *model.problems]:
        lines += ["", "Of the evaluation:", "", *(f"- {_plain(problem)}" for problem in problems)]
    lines += ["", f"Written by {_plain(content.toolkit)} on {_plain(content.made)}."]
    return "\n".join(lines) + "\n"


def _metadata(content: ReportContent, model: ModelContent) -> Iterator[str]:
    """The YAML block, whose values are JSON, which YAML includes."""
    yield "# license and datasets are not stated: add those that you publish the model with"
    yield f"library_name: {_yaml('atss-toolkit')}"
    yield f"pipeline_tag: {_yaml('object-detection')}"
    tags = ["object-detection", "atss", "coco"]
    if "precision" in model.facts:
        tags.append(model.facts["precision"])
    yield f"tags: {_yaml(tags)}"
    measured = {name: one for name in _METRICS if (one := model.metrics[name]).value >= 0}
    if measured:
        name = Path(content.data.annotations).name
        result = {
            "task": {"type": "object-detection", "name": "Object detection"},
            "dataset": {"type": "unknown", "name": name or "unknown"},  # the type is a data set's id on the Hub
            "metrics": [
                {"type": "map", "name": _METRICS[key], "value": round(one.value, 6)} for key, one in measured.items()
            ],
        }
        yield f"metrics: {_yaml(['map'])}"
        yield f"model-index: {_yaml([{'name': model.name, 'results': [result]}])}"


def _yaml(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return _NOT_IN_YAML.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def _training(content: ReportContent) -> Iterator[str]:
    if not content.runs:
        yield "Unknown: no training run was found beside the model or given."
        return
    for run in content.runs:
        yield from _table(("fact", "value"), run.facts.items())
        if run.settings:
            settings = json.dumps(run.settings, indent=2, ensure_ascii=False).replace("`", "\\u0060")
            yield from ("", "Settings:", "", "```json", *settings.split("\n"), "```")


def _evaluation(content: ReportContent, model: ModelContent) -> Iterator[str]:
    data = content.data
    images, objects = (
        f"{n} {word}{'' if n == 1 else 's'}" for n, word in ((data.images, "image"), (data.objects, "object"))
    )
    yield f"COCO box metrics on {images} with {objects} of {_plain(Path(data.annotations).name)}."
    how = f"95 % intervals of {content.resamples} resamples of the images" if content.resamples else "without intervals"
    yield f"In percent, {how}."
    yield from (f"{_plain(condition[:1].upper() + condition[1:])}." for condition in content.conditions)
    yield ""
    yield from _table(("metric", "value"), ((name, _percent(one)) for name, one in model.metrics.items()))
    yield ""
    yield from _table(("class", "AP"), ((name, _percent(one)) for name, one in model.per_class.items()))
    if model.f1 is not None:
        yield ""
        best = f"{100 * model.f1.best_f1:.1f}, with detections of score {model.f1.best_score:g} or more"
        yield f"F1 at IoU 0.5 is highest, {best}."


def _errors(model: ModelContent) -> list[str]:
    if not model.errors:
        return ["Unknown: there was nothing to measure."]
    rows = ((kind, one.count, f"{100 * one.worth_ap:+.1f}") for kind, one in model.errors.items())
    return ["By kind, as TIDE defines them (arXiv 2008.08115).", "", *_table(("kind", "count", "AP if mended"), rows)]


def _percent(one: Interval) -> str:
    if one.value < 0:
        return "nothing to measure"
    bounds = "" if one.low is None or one.high is None else f" ({100 * one.low:.1f} to {100 * one.high:.1f})"
    return f"{100 * one.value:.1f}{bounds}"


def _table(head: Sequence[str], rows: Any) -> list[str]:
    lines = [f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}"]
    return lines + [f"| {' | '.join(_plain(cell) for cell in row)} |" for row in rows]


def _plain(value: object) -> str:
    """Text in which Markdown and HTML mean nothing, in one line."""
    return _MARKDOWN.sub(r"\\\1", printable(value))
