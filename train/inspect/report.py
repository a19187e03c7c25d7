"""The whole report on a data set: made from its parts, as text and as JSON."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

from ..config import Config
from .boxes import ELONGATED, OUTSIDE, TINY, BoxReport, as_json, box_report
from .files import FileReport, file_report, identical_files
from .opened import Opened
from .positives import PositivesReport, positives_report

NAMED = 5  # files that a line gives
CLASSES_SHOWN = 60


class Report(NamedTuple):
    """What is in a data set."""

    name: str
    images: int
    image_sizes: tuple[tuple[str, int], ...]  # width×height and how often, most frequent first
    problems: tuple[str, ...]  # what was left out while it was read
    boxes: BoxReport
    files: FileReport
    identical: tuple[tuple[str, ...], ...]  # groups of files with the same bytes
    compared_with: str  # the validation set; empty where there was none
    leaks: tuple[tuple[str, ...], ...]  # groups of files with the same bytes, in both sets
    positives: PositivesReport | None

    @property
    def faults(self) -> tuple[str, ...]:
        """What has to be mended before training, a line each; none for a sound data set."""
        named = {
            "images that can't be read": len(self.files.unreadable),
            "images of another size than annotated": len(self.files.other_size),
            f"images that are also in {self.compared_with}": len(self.leaks),
        }
        lines = [f"{count} {text}" for text, count in named.items() if count]
        return (*lines, *(() if self.boxes.objects else ("no image has an object",)))


def inspect_data(
    opened: Opened, val: Opened | None = None, config: Config | None = None, *, decode: int = 200, assign: int = 2000
) -> Report:
    """Inspect a data set, compare its files with those of `val`, and assign the anchors of a configuration.

    `decode` images are decoded and the anchors of `assign` images assigned, evenly spread (0: all).
    """
    dataset = opened.dataset
    paths = [dataset.path(index) for index in range(len(dataset))]
    others = [] if val is None else [val.dataset.path(index) for index in range(len(val.dataset))]
    groups = identical_files([*paths, *others])
    names = [*dataset.file_names[:], *(str(path) for path in others)]
    inside = [[index for index in group if index < len(paths)] for group in groups]
    sizes = Counter(f"{width}×{height}" for height, width in dataset.sizes_hw.tolist())
    return Report(
        name=opened.name,
        images=len(dataset),
        image_sizes=tuple(sizes.most_common()),
        problems=opened.problems,
        boxes=box_report(dataset, opened.truth),
        files=file_report(dataset, decode),
        identical=tuple(tuple(names[index] for index in group) for group in inside if len(group) > 1),
        compared_with="" if val is None else val.name,
        leaks=tuple(
            tuple(names[index] for index in group)
            for group, own in zip(groups, inside, strict=True)
            if 0 < len(own) < len(group)
        ),
        positives=None if config is None else positives_report(dataset, config, assign),
    )


def report_as_text(report: Report) -> str:
    """The report for a terminal."""
    return "\n".join(_lines(report))


def report_as_json(report: Report) -> dict[str, Any]:
    """The report as JSON has it."""
    positives = report.positives
    content = {**report._asdict(), "boxes": as_json(report.boxes), "files": report.files._asdict()}
    if positives is not None:
        rows = [{**row._asdict(), "below": row.below if row.below < 1e9 else None} for row in positives.rows]
        totals = {"objects": positives.objects, "without": positives.without}
        content["positives"] = {**positives._asdict(), "rows": rows, **totals}
    return {**content, "faults": report.faults}


def _lines(report: Report) -> Iterator[str]:
    boxes, files = report.boxes, report.files
    yield f"{report.name}: {report.images} images, {boxes.objects} objects, {len(boxes.classes)} classes"
    yield f"  images without objects: {boxes.empty_images}"
    shown = ", ".join(f"{size} ({count})" for size, count in report.image_sizes[:NAMED])
    yield f"  image sizes: {shown}" + _more(len(report.image_sizes))
    yield from (f"  left out: {problem}" for problem in report.problems)
    yield ""
    width = max(5, *(len(row.name) for row in boxes.classes[:CLASSES_SHOWN]))
    yield f"{'class':<{width}}  objects  images"
    for row in boxes.classes[:CLASSES_SHOWN]:
        yield f"{row.name:<{width}}  {row.objects:>7}  {row.images:>6}"
    if len(boxes.classes) > CLASSES_SHOWN:
        yield f"… and {len(boxes.classes) - CLASSES_SHOWN} more classes"
    yield ""
    yield "boxes"
    for text, values in (
        ("objects of an image", boxes.per_image),
        ("side (√area), px", boxes.sides),
        ("width / height", boxes.aspects),
    ):
        if values:
            yield f"  {text}: " + ", ".join(f"{value:g} ({quantile})" for quantile, value in values.items())
    if boxes.crowds:
        yield f"  crowds and regions to ignore: {boxes.crowds}"
    yield f"  longer than {ELONGATED:g} × their width: {boxes.elongated}"
    for name, text in (
        ("tiny", f"with a side below {TINY:g} px"),
        ("outside", f"more than {OUTSIDE:g} px beyond their image"),
        ("same_twice", "a second time in the same image"),
        ("two_classes", "a second time with another class"),
    ):
        example = f" (as in {', '.join(boxes.examples[name])})" if name in boxes.examples else ""
        yield f"  {text}: {getattr(boxes, name)}{example}"
    yield ""
    yield f"files ({files.images} headers read, {files.decoded} images decoded)"
    yield from _group("can't be read", list(files.unreadable))
    yield from _group("of another size than annotated", list(files.other_size))
    yield from _group("identical files", [" = ".join(group[:NAMED]) for group in report.identical])
    if report.compared_with:
        yield from _group(f"also in {report.compared_with}", [" = ".join(group[:NAMED]) for group in report.leaks])
    if report.positives is not None:
        yield ""
        yield from _positives_lines(report.positives)
    yield ""
    yield from (f"fault: {fault}" for fault in report.faults)
    if not report.faults:
        yield "no faults"


def _positives_lines(found: PositivesReport) -> Iterator[str]:
    short, long = found.sides
    yield (
        f"anchors of {found.recipe}, images resized to {short} / {long} px "
        f"({found.images} of {found.of_images} images with objects)"
    )
    sides = "; ".join(
        f"stride {stride}: " + ", ".join(f"{width:.0f}×{height:.0f}" for width, height in sizes[:9])
        for stride, sizes in found.levels
    )
    yield f"  anchor sizes, px: {sides}"
    yield "  side (√area), px   objects  without a positive  positives each"
    for row in found.rows:
        bounds = f"{row.least:g} – {row.below:g}" if row.below < 1e9 else f"from {row.least:g}"
        without = f"{row.without} ({100 * row.without / row.objects:.1f} %)"
        yield f"  {bounds:<17} {row.objects:>9}  {without:>18}  {row.positives:>14.1f}"
    if found.objects:
        yield f"  without a positive in all: {found.without} of {found.objects}"
    if found.without:
        yield "  (nothing trains the network to find these: larger images, or a smaller anchor scale, may help)"


def _group(text: str, entries: list[str]) -> Iterator[str]:
    yield f"  {text}: {len(entries)}"
    yield from (f"    {entry}" for entry in entries[:NAMED])
    if len(entries) > NAMED:
        yield f"    and {len(entries) - NAMED} more (all of them: --json)"


def _more(count: int) -> str:
    return f" and {count - NAMED} others" if count > NAMED else ""
