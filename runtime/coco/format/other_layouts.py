"""What a file is that was given in the place of COCO's JSON: data sets of other layouts begin in ways of their own."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from ...command_names import CONVERT

_DATA_YAML = re.compile(r"^(names|nc|train|val|test|path)[ \t]*:", re.MULTILINE)
_LABEL_LINE = re.compile(r"[0-9]+([ \t]+[-+0-9.eE]+){4,}[ \t]*\r?")
_VOC = re.compile(r"<annotation[\s>]")
_LABEL_LINES = 5  # at the file's begin that have to be labels


def describe_text(head: bytes, path: Path, what: str, more_follows: bool) -> str | None:
    """What a text looks like by its first bytes, and what to do with it; None where it is nothing known.

    `what` was expected in the file: annotations or results. `more_follows` tells that the text begins with a whole
    JSON value.
    """
    text = head.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "replace").lstrip()
    if more_follows and text.startswith("{"):
        return f"this looks like JSON Lines, a value in each line, and not COCO's {what}, which are one JSON value"
    if text.startswith(("{", "[")):
        return None
    if _VOC.search(text):
        kind, source = "the Pascal VOC file of one image", "voc:FOLDER"
    elif len({found[1] for found in _DATA_YAML.finditer(text)}) >= 2:
        kind, source = "a YOLO data.yaml", f"yolo:{path}"
    elif (lines := text.splitlines()[:_LABEL_LINES]) and all(map(_LABEL_LINE.fullmatch, lines)):
        kind, source = "YOLO's labels of one image", "yolo:data.yaml"
    elif text.partition("\n")[0].count(",") >= 3:
        return f"this looks like a CSV table, not COCO's {what}; they are JSON"
    else:
        return None
    return f"this looks like {kind}, not COCO's {what}" + (_ways(source) if what == "annotations" else "")


def describe_list(content: Any, path: str) -> str | None:
    """What a JSON list looks like that stands in the place of annotations; None where it is nothing known.

    Its entries may be packed, to integers, if they are annotations or results.
    """
    first = content[0] if isinstance(content, list) and content else None
    if isinstance(first, int) or (isinstance(first, dict) and "image_id" in first):
        return "this is a list, as COCO results are: give the annotation file, which has images and categories as well"
    if not isinstance(first, dict):
        return None
    if "annotations" in first and ("image" in first or "imagefilename" in first):
        return "this looks like CreateML, not COCO's annotations" + _ways(f"createml:{path}")
    return None


def _ways(source: str) -> str:
    return f": train with --data.train {source}, or write the data set in COCO's format: {CONVERT} {source} -o set.json"
