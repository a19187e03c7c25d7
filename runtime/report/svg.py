"""Makes a matplotlib figure part of the page: text stays text, colours are the page's, ids are its own."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from typing import Any
from xml.etree import ElementTree

import numpy as np

# Colours for drawing, which become the page's variables: so the charts follow its light and dark looks.
INK, MUTED, GRID, SURFACE = "#010101", "#020202", "#030303", "#040404"
GOOD, BAD = "#050505", "#060606"
SERIES = tuple(f"#0707{index:02x}" for index in range(8))  # of models, or of the lines of a chart
_VARIABLES = {INK: "ink", MUTED: "muted", GRID: "grid", SURFACE: "surface", GOOD: "good", BAD: "bad"} | {
    color: f"s{index}" for index, color in enumerate(SERIES)
}
_SVG, _XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
_NUMBER = re.compile(r"-?\d+\.\d+")
_REFERENCE = re.compile(r"url\(#([^)]+)\)")
_KEPT_IN_TEXT = ("text-anchor", "fill", "font-size")


def text_of(figure: Any, key: str, title: str, description: str) -> str:
    """A figure as an <svg> element for the page. `key` is unique in the page and begins all its ids.

    Screen readers get the title and the description.
    """
    from matplotlib import rc_context

    written = io.BytesIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": key}):
        figure.savefig(written, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    root = ElementTree.fromstring(written.getvalue())
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag in (f"{{{_SVG}}}metadata", f"{{{_SVG}}}style"):
                parent.remove(child)
    _own_ids(root, key)
    for element in root.iter():
        _tidy(element)
    root.attrib = {
        "viewBox": _short(root.get("viewBox", "")),
        "role": "img",
        "class": "chart",
        "aria-labelledby": f"{key}-title {key}-text",
    }
    for place, (tag, text) in enumerate((("title", title), ("desc", description))):
        element = ElementTree.Element(tag, {"id": f"{key}-{'text' if tag == 'desc' else tag}"})
        element.text = text
        root.insert(place, element)
    return ElementTree.tostring(root, encoding="unicode")


def _own_ids(root: ElementTree.Element, key: str) -> None:
    """Ids that something refers to begin with `key`, the others go."""
    used = set()
    for element in root.iter():
        for name, value in element.attrib.items():
            used |= set(_REFERENCE.findall(value))
            if name == f"{{{_XLINK}}}href":
                used.add(value.removeprefix("#"))
    names = {name: f"{key}-{place}" for place, name in enumerate(sorted(used))}
    for element in root.iter():
        if (own := element.attrib.pop("id", None)) in names:
            element.set("id", names[own])
        for name, value in list(element.attrib.items()):
            if name == f"{{{_XLINK}}}href":
                del element.attrib[name]
                element.set("href", f"#{names[value.removeprefix('#')]}")
            else:
                element.set(name, _REFERENCE.sub(lambda found: f"url(#{names[found[1]]})", value))


def _tidy(element: ElementTree.Element) -> None:
    """Short numbers, the page's colours and font, no namespaces."""
    element.tag = element.tag.rpartition("}")[2]
    style = element.attrib.pop("style", "")
    if element.tag == "text":
        style = "; ".join(part for part in style.split("; ") if part.split(":")[0] in _KEPT_IN_TEXT)
    for color, variable in _VARIABLES.items():
        style = style.replace(color, f"var(--{variable})")
    for name in ("d", "x", "y", "transform", "width", "height"):
        if name in element.attrib:
            element.set(name, _short(element.attrib[name]))
    if style:
        element.set("style", style)


def _short(text: str) -> str:
    return " ".join(_NUMBER.sub(lambda found: f"{float(found[0]):.1f}".removesuffix(".0"), text).split())


def path_of(x: Sequence[float] | np.ndarray, y: Sequence[float] | np.ndarray, width: float, height: float) -> str:
    """The `d` of a <path> through points of the unit square, in a box of `width` × `height`, y upwards."""
    places = [f"{width * a:.1f} {height * (1 - b):.1f}" for a, b in zip(x, y, strict=True)]
    return "M" + "L".join(places).replace(".0 ", " ").replace(".0L", "L") if places else ""


def thinned(points: np.ndarray, tolerance: float) -> np.ndarray:
    """The points [n, 2] of a line that matter: the others lie within `tolerance` of the line through those.

    Douglas and Peucker's method. The first and the last point stay.
    """
    if len(points) < 3:
        return points
    kept = np.zeros(len(points), bool)
    kept[[0, -1]] = True
    parts = [(0, len(points) - 1)]
    while parts:
        first, last = parts.pop()
        if last - first < 2:
            continue
        along, offset = points[last] - points[first], points[first + 1 : last] - points[first]
        length = float(np.hypot(*along))
        away = np.abs(offset[:, 0] * along[1] - offset[:, 1] * along[0]) / length if length else np.hypot(*offset.T)
        farthest = int(np.argmax(away))
        if away[farthest] > tolerance:
            kept[first + 1 + farthest] = True
            parts += [(first, first + 1 + farthest), (first + 1 + farthest, last)]
    return points[kept]
