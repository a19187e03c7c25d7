"""The report of a reproduction: tables in Markdown, numbers as JSON, and plots.

The spread is the sample standard deviation over the seeds (n − 1). A system is called better than another only where
each of its seeds is better than each seed of the other.
"""

from __future__ import annotations

import json
import math
import statistics
from pathlib import Path

from runtime.files import atomic_write

from .plots import draw_crossings, draw_k
from .rows import METRICS, Row, k_rows, mean_and_spread, rows_of, separated
from .systems import Job, K

BEGIN, END = "<!-- begin: written by train.reproduce -->", "<!-- end -->"
PAGE, NUMBERS, CROSSINGS_PLOT, K_PLOT = (
    "reproduction.md",
    "reproduction.json",
    "reproduction_crossings.png",
    "reproduction_k.png",
)


def write_report(jobs: list[Job], out: Path, into: Path) -> Path:
    """Write tables, numbers and plots of the finished jobs to the folder `into`; return the Markdown file.

    In an existing Markdown file only the text between the marks is replaced.
    """
    rows = rows_of(jobs, out)
    atomic_write(into / NUMBERS, json.dumps([_as_json(row) for row in rows], indent=1) + "\n")
    draw_crossings([row for row in rows if row.system.part in ("crossings", "anchors")], into / CROSSINGS_PLOT)
    draw_k(k_rows(rows), into / K_PLOT)
    page = into / PAGE
    text = page.read_text(encoding="utf-8") if page.exists() else f"# The paper in miniature\n\n{BEGIN}\n{END}\n"
    before, found, rest = text.partition(BEGIN)
    _, ended, after = rest.partition(END)
    if not (found and ended):
        before, after = text.rstrip("\n") + "\n\n", "\n"
    atomic_write(page, f"{before}{BEGIN}\n{markdown(rows)}{END}{after}")
    return page


def markdown(rows: list[Row]) -> str:
    """The tables in Markdown, with the comparisons that are beyond the spread, and the jobs that failed."""
    parts = {part: [row for row in rows if row.system.part == part] for part in ("crossings", "anchors", "k", "shape")}
    parts["k"] = k_rows(rows) if parts["k"] else []
    titles = {
        "crossings": "Positives × regression",
        "anchors": "9 anchors",
        "k": f"k of ATSS ({K} above)",
        "shape": "The anchor of ATSS",
    }
    lines = []
    for part, title in titles.items():
        if parts[part]:
            lines += [f"### {title}", "", *_table(parts[part]), ""]
    lines += ["### Better beyond the spread", "", *_comparisons(parts["crossings"]), ""]
    troubles = [
        *(f"- {row.system.key}, seed {seed}: failed: {why}" for row in rows for seed, why in row.failures.items()),
        *(
            f"- {row.system.key}: not trained yet: seed {', '.join(map(str, row.missing))}"
            for row in rows
            if row.missing
        ),
    ]
    lines += ["### Failed or not trained", "", *(troubles or ["none"]), ""]
    return "\n".join(lines)


def _joined(seeds: tuple[int, ...]) -> str:
    return ", ".join(map(str, seeds))


def _table(rows: list[Row]) -> list[str]:
    lines = [
        "| positives | regress from | AP | AP50 | AP75 | seeds | AP of each seed | paper's AP |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        cells = [_cell(row.metrics[name]) for name in METRICS]
        each = " ".join(f"{value:.1f}" for value in row.ap)
        failed = f", {len(row.failures)} failed" if row.failures else ""
        paper = "" if row.system.paper_ap is None else f"{row.system.paper_ap:.1f}"
        columns = [row.system.label, row.system.start, *cells, f"{len(row.seeds)}{failed}", each, paper]
        lines.append(f"| {' | '.join(columns)} |")
    return lines


def _cell(values: tuple[float, ...]) -> str:
    mean, spread = mean_and_spread(values)
    if not values:
        return "–"
    return f"{mean:.1f}" if math.isnan(spread) else f"{mean:.1f} ± {spread:.1f}"


def _comparisons(rows: list[Row]) -> list[str]:
    """A table of the pairs of crossings that differ by half a point or more in the paper, with the difference here."""
    lines = [
        "| paper: better | than | by | here by | every seed of one above every seed of the other |",
        "| --- " * 5 + "|",
    ]
    known = [(row, row.system.paper_ap) for row in rows if row.system.paper_ap is not None and row.ap]
    for better, high in sorted(known, key=lambda pair: -pair[1]):
        for worse, low in known:
            if high - low < 0.5:
                continue
            here = statistics.fmean(better.ap) - statistics.fmean(worse.ap)
            verdict = {1: "yes, as in the paper", -1: "yes, the other way round", 0: "no"}[separated(better, worse)]
            names = [f"{row.system.label}, {row.system.start}" for row in (better, worse)]
            lines.append(f"| {names[0]} | {names[1]} | {high - low:.1f} | {here:+.1f} | {verdict} |")
    return lines


def _as_json(row: Row) -> dict[str, object]:
    mean, spread = mean_and_spread(row.ap)
    return {
        "system": row.system.key,
        "part": row.system.part,
        "positives": row.system.label,
        "regress_from": row.system.start,
        "k": row.system.assignment.k if row.system.assignment.method == "atss" else None,
        "paper_ap": row.system.paper_ap,
        "ap_mean": None if math.isnan(mean) else mean,
        "ap_spread": None if math.isnan(spread) else spread,
        "seeds": {str(seed): {n: row.metrics[n][i] for n in METRICS} for i, seed in enumerate(row.seeds)},
        "failures": {str(seed): why for seed, why in row.failures.items()},
        "missing": list(row.missing),
    }
