"""What pycocotools makes of the same files."""

from __future__ import annotations

import copy
import json
from contextlib import redirect_stdout
from io import StringIO
from typing import Any

import numpy as np

from runtime.coco import METRIC_NAMES


def parsed(data: bytes) -> Any:
    """The JSON in bytes; None where there is none."""
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        return None


def figures(truth: Any, found: Any) -> dict[str, float] | None:
    """The twelve metrics of parsed results on parsed annotations by pycocotools; None where it fails."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    try:
        with redirect_stdout(StringIO()), np.errstate(all="ignore"):
            coco = COCO()
            coco.dataset = copy.deepcopy(truth)
            coco.createIndex()
            loaded = coco.loadRes(copy.deepcopy(found)) if found else COCO()
            if not found:
                loaded.dataset = {"images": coco.dataset["images"], "annotations": [], "categories": []}
                loaded.createIndex()
            scored = COCOeval(coco, loaded, "bbox")
            scored.evaluate()
            scored.accumulate()
            scored.summarize()
        return dict(zip(METRIC_NAMES, map(float, scored.stats), strict=True))
    except Exception:  # whatever it stumbles over: then there is no reference
        return None


def differences(ours: dict[str, float], theirs: dict[str, float]) -> str:
    """The metrics that differ; empty where none does."""
    wrong = [
        f"{name} {ours[name]:.6f} instead of {value:.6f}"
        for name, value in theirs.items()
        if not np.isclose(ours[name], value, atol=1e-9)
    ]
    return ", ".join(wrong)
