"""What a reader of the report should know first, as sentences. All of it follows from the content's figures."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from .content import ErrorKind, Interval, KindOfError, ModelContent, ReportContent

WORDS: dict[ErrorKind, str] = {
    "class": "wrong classes",
    "localisation": "inexact boxes",
    "both": "wrong classes with inexact boxes",
    "duplicate": "duplicates",
    "background": "detections on background",
    "missed": "missed objects",
}
_FEW_IMAGES = 100
_WIDE = 0.05  # half of an interval of AP that is too wide to compare models
_MISCALIBRATED = 0.05


@dataclass(frozen=True)
class Finding:
    """One sentence in two parts, and what it means for the reader."""

    headline: str
    detail: str
    tone: Literal["good", "bad", "plain"] = "plain"
    section: str = ""  # id of the section with the figures


def find(content: ReportContent) -> list[Finding]:
    """The findings, most important first."""
    return [
        *(Finding(note, "") for note in content.notes),
        *_differences(content),
        *_errors(content),
        *_weak_classes(content),
        *_calibration(content),
        *_doubts(content),
    ]


def is_clear(difference: Interval) -> bool:
    """Whether the interval of a difference leaves out 0."""
    return difference.low is not None and difference.high is not None and (difference.low > 0 or difference.high < 0)


def points(value: float, digits: int = 1) -> str:
    """A difference of 0–1 in points of percent with its sign; no sign where it rounds to 0."""
    text = f"{100 * value:+.{digits}f}"
    return text[1:] if float(text) == 0 else text.replace("-", "−")


def _differences(content: ReportContent) -> Iterator[Finding]:
    first = content.models[0]
    for model in content.models[1:]:
        difference = (model.difference or {}).get("AP")
        if difference is None or model.metrics["AP"].value < 0:
            continue
        if difference.low is None or difference.high is None:
            yield Finding(f"{model.name}: {points(difference.value)} AP against {first.name}.", "", section="metrics")
            continue
        span = f"{points(difference.low)} to {points(difference.high)}"
        if is_clear(difference):
            worse = difference.value < 0
            yield Finding(
                f"{model.name} is {'worse' if worse else 'better'} than {first.name}: {points(difference.value)} AP.",
                f"The 95 % interval of the difference, {span}, leaves out 0.",
                "bad" if worse else "good",
                "metrics",
            )
        else:
            yield Finding(
                f"{model.name} and {first.name} cannot be told apart on these images: {points(difference.value)} AP.",
                f"The 95 % interval of the difference, {span}, contains 0.",
                "plain",
                "metrics",
            )


def _errors(content: ReportContent) -> Iterator[Finding]:
    model = content.models[0]
    kinds = sorted(model.errors, key=lambda kind: -model.errors[kind].worth_ap50)
    if not kinds or model.errors[kinds[0]].worth_ap50 <= 0:
        return
    best = model.errors[kinds[0]]
    also = ""
    if len(kinds) > 1 and (second := model.errors[kinds[1]]).worth_ap50 > 0:
        also = f" Next: {WORDS[kinds[1]]}, {_worth(second)}."
    most = max(kinds, key=lambda kind: model.errors[kind].worth_ap)
    if most != kinds[0]:  # boxes that are right at IoU 0.5 may cost most at 0.95
        also = f" Over all IoUs, {WORDS[most]} cost most: {_worth(model.errors[most])}."
    yield Finding(
        _sentence(model, content, f"at IoU 0.5, {WORDS[kinds[0]]} cost most: {_worth(best)} if mended."),
        f"{'There is' if best.count == 1 else 'There are'} {best.count:,} of this kind, at any score.{also}",
        section="errors",
    )


def _worth(kind: KindOfError) -> str:
    return f"{points(kind.worth_ap50)} AP50 and {points(kind.worth_ap)} AP"


def _weak_classes(content: ReportContent) -> Iterator[Finding]:
    model = content.models[0]
    measured = sorted((found.value, name) for name, found in model.per_class.items() if found.value >= 0)
    if len(measured) < 4:
        return
    lowest = ", ".join(f"{name} ({100 * value:.1f})" for value, name in measured[:3])
    value, name = measured[-1]
    yield Finding(
        _sentence(model, content, f"lowest AP: {lowest}."), f"Highest: {name} ({100 * value:.1f}).", section="classes"
    )


def _calibration(content: ReportContent) -> Iterator[Finding]:
    model = content.models[0]
    found = model.reliability
    if found is None or found.error < _MISCALIBRATED or model.metrics["AP"].value < 0:
        return  # without an object to find every detection is wrong, whatever its score
    counts = np.asarray(found.hits, float) + np.asarray(found.misses, float)
    confidence, used = np.asarray(found.confidence), counts > 0
    if ((confidence[used] < 0) | (confidence[used] > 1)).any():
        yield Finding(
            _sentence(model, content, "scores are no probabilities: some lie outside 0 to 1."),
            "Calibration says nothing of them.",
            section="calibration",
        )
        return
    gaps = (confidence - np.asarray(found.precision))[used] * counts[used]
    direction = "higher" if gaps.sum() > 0 else "lower"
    yield Finding(
        _sentence(model, content, f"scores are {direction} than the share of right detections."),
        f"The expected calibration error is {found.error:.3f}: do not read a score as a probability.",
        section="calibration",
    )


def _doubts(content: ReportContent) -> Iterator[Finding]:
    overall = content.models[0].metrics["AP"]
    half = 0.0 if overall.low is None or overall.high is None else (overall.high - overall.low) / 2
    if overall.value < 0:
        yield Finding("There was nothing to measure: no object that counts in these images.", "", "bad", "data")
    elif half > _WIDE:
        yield Finding(
            f"Intervals are wide: ±{100 * half:.1f} AP.", f"{content.data.images:,} images are few.", "bad", "metrics"
        )
    elif 0 < content.data.images < _FEW_IMAGES:
        scored = "1 image was" if content.data.images == 1 else f"{content.data.images} images were"
        yield Finding(f"Only {scored} scored.", "", "plain", "data")


def _sentence(model: ModelContent, content: ReportContent, text: str) -> str:
    """The sentence about a model, which is named where there are several."""
    return f"{model.name}: {text}" if len(content.models) > 1 else text[:1].upper() + text[1:]
