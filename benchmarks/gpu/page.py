"""The page of a GPU report, in Markdown: conditions, what each step did, each figure, each failure, each omission."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .steps import Step

REHEARSAL = (
    "**This is a rehearsal: small sizes on stand-ins. Its figures say that the scripts work, and nothing else.**"
)
NO_CARD = "**There was no GPU: every part that needs one is listed as not run.**"
_MOST_CHARACTERS = 4000  # of a failure's text


def page(report: Mapping[str, Any], steps: Sequence[Step]) -> str:
    """The page of a report as `benchmarks.gpu.report` keeps it; steps without an entry are listed as not run."""
    conditions, entries = report["conditions"], report["steps"]
    lines = ["# Report from a GPU", ""]
    if report["rehearsal"]:
        lines += [REHEARSAL, ""]
    elif str(conditions["card"]).startswith("none"):
        lines += [NO_CARD, ""]
    lines += ["`scripts/gpu_report.sh` wrote this page.", "", "## Conditions", "", *_conditions(conditions), ""]
    lines += ["## Steps", "", *_overview(report, steps), ""]
    lines += _collected("Failures", "Nothing failed.", entries, steps, _failures)
    lines += _collected("Not run", "Nothing was left out.", entries, steps, _not_run)
    for step in steps:
        entry = entries.get(step.name)
        if entry is not None:
            lines += [f"## {step.name}", "", f"{_sentence(step.what)}.", "", *_step(entry)]
    return "\n".join(lines).rstrip() + "\n"


def markdown_table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Rows as the lines of a table; its columns are all keys, in the order in which they first appear."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    lines = [_line(columns), _line(["---"] * len(columns))]
    return lines + [_line([row.get(name) for name in columns]) for row in rows]


def cell(value: Any) -> str:
    """A value as the text of a table's cell."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1000 else f"{value:.0f}"
    if isinstance(value, Mapping):
        return ", ".join(f"{cell(name)} {cell(inner)}" for name, inner in value.items())
    if isinstance(value, (list, tuple)):
        return " ".join(cell(inner) for inner in value)
    return str(value).replace("|", "\\|").replace("\n", "<br>")


def _line(values: Sequence[Any]) -> str:
    return "| " + " | ".join(cell(value) for value in values) + " |"


def _conditions(conditions: Mapping[str, Any]) -> list[str]:
    return ["| | |", "| --- | --- |", *(_line([name, value]) for name, value in conditions.items())]


def _overview(report: Mapping[str, Any], steps: Sequence[Step]) -> list[str]:
    conditions, rows = report["conditions"], []
    for step in steps:
        entry = report["steps"].get(step.name)
        row: dict[str, Any] = {"step": step.name, "what": step.what, "outcome": "not run"}
        if entry is not None:
            row |= {
                "outcome": entry["outcome"],
                "minutes": round(entry["seconds"] / 60, 2),
                "minutes given": round(entry["minutes"], 2),
            }
            row |= {name: value for name, value in entry["card"].items() if name != "samples"}
            row["ran on another"] = _differing(entry["ran_on"], conditions) or None
        row["minutes expected on an H100"] = step.expected_minutes
        rows.append(row)
    return markdown_table([{name: value for name, value in row.items() if value is not None} for row in rows])


def _differing(then: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    """The conditions of `then` that are others now; of conditions with several values, these values."""
    found: dict[str, Any] = {}
    for name, value in then.items():
        if value != now[name]:
            nested = isinstance(value, Mapping) and isinstance(now[name], Mapping)
            found[name] = {k: v for k, v in value.items() if v != now[name].get(k)} if nested else value
    return found


def _collected(title: str, nothing: str, entries: Mapping[str, Any], steps: Sequence[Step], lines_of: Any) -> list[str]:
    lines = [line for step in steps for line in lines_of(step, entries.get(step.name))]
    return [f"## {title}", "", *(lines or [nothing]), ""]


def _failures(step: Step, entry: Mapping[str, Any] | None) -> list[str]:
    if entry is None:
        return []
    texts = {"the step itself": entry["text"], **entry["failures"]}
    lines = []
    for part, text in texts.items():
        if text:
            shown = text if len(text) <= _MOST_CHARACTERS else text[:_MOST_CHARACTERS] + "\n… (cut)"
            fence = "`" * 4
            lines += [f"- **{step.name}: {part}**", "", f"    {fence}text", *_indented(shown), f"    {fence}", ""]
    return lines


def _indented(text: str) -> list[str]:
    return [f"    {line}".rstrip() for line in text.splitlines()]


def _not_run(step: Step, entry: Mapping[str, Any] | None) -> list[str]:
    if entry is None:
        return [f"- {step.name}: the whole step: it was not asked for, or there was no time left"]
    return [f"- {step.name}: {part}: {reason}" for part, reason in entry["not_run"].items()]


def _step(entry: Mapping[str, Any]) -> list[str]:
    lines = []
    for name, rows in entry["tables"].items():
        if rows:
            lines += [f"### {_sentence(name)}", "", *markdown_table(rows), ""]
    return lines or ["No figures.", ""]


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]
