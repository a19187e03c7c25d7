"""Runs the evaluate command in this process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from runtime.coco import CocoDataset
from runtime.coco.command import main


def arguments(dataset: CocoDataset, *more: object) -> list[str]:
    """The command's arguments for a data set on one thread of the CPU backend."""
    given = ["--annotations", dataset.json_path, "--images", dataset.root, "--threads", 1, "--backend", "cpu", *more]
    return list(map(str, given))


def run(dataset: CocoDataset, out: Path, *more: object) -> dict[str, Any]:
    """Evaluate and return the content of the JSON file that the command wrote."""
    assert main([*map(str, more), *arguments(dataset, "--json", out, "--batch", 2)]) == 0
    return json.loads(out.read_text())
