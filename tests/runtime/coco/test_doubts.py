"""Files that can be read entry by entry, and whose figures show that something else was meant."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from runtime.coco import CocoDataset, load_coco
from runtime.coco.command import main
from runtime.coco.format import doubt_of_boxes

from .test_evaluate import make_dataset

Box = list[float]
FORMS: dict[str, Callable[[Box, float, float], Box]] = {
    "plain": lambda b, w, h: b,
    "fractions": lambda b, w, h: [b[0] / w, b[1] / h, b[2] / w, b[3] / h],
    "corners": lambda b, w, h: [b[0], b[1], b[0] + b[2], b[1] + b[3]],
}
SAID = {"fractions": "as fractions of the image's sides do", "corners": "corners x1, y1, x2, y2"}


@pytest.fixture
def dataset(tmp_path: Path) -> CocoDataset:
    """Objects in the lower right of their images, so that corners read as sizes lead out."""
    dataset = make_dataset(tmp_path)
    content = json.loads(dataset.json_path.read_text())
    sizes = {image["id"]: (image["width"], image["height"]) for image in content["images"]}
    for annotation in content["annotations"]:
        width, height = sizes[annotation["image_id"]]
        annotation["bbox"] = [width * 0.6, height * 0.5, width * 0.3, height * 0.4]
    dataset.json_path.write_text(json.dumps(content))
    return load_coco(dataset.json_path, dataset.root)


def in_form(form: str, rows: list[dict], dataset: CocoDataset) -> list[dict]:
    sizes = dict(zip(dataset.image_ids.tolist(), dataset.sizes_hw.tolist(), strict=True))
    return [{**row, "bbox": FORMS[form](row["bbox"], *reversed(sizes[row["image_id"]]))} for row in rows]


@pytest.mark.parametrize("form", FORMS)
def test_annotations(form: str, dataset: CocoDataset) -> None:
    content = json.loads(dataset.json_path.read_text())
    content["annotations"] = in_form(form, content["annotations"], dataset)
    dataset.json_path.write_text(json.dumps(content))
    said = [line for line in load_coco(dataset.json_path, dataset.root).problems if "doubtful boxes" in line]
    assert len(said) == (form != "plain")
    assert form == "plain" or SAID[form] in said[0]


@pytest.mark.parametrize("form", [*FORMS, "classes from 0", "nothing"])
def test_results(form: str, dataset: CocoDataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = json.loads(dataset.json_path.read_text())
    names = {category["id"]: number for number, category in enumerate(content["categories"], start=1)}
    content["categories"] = [{**category, "id": names[category["id"]]} for category in content["categories"]]
    content["annotations"] = [{**a, "category_id": names[a["category_id"]]} for a in content["annotations"]]
    dataset.json_path.write_text(json.dumps(content))
    rows = [
        {key: a[key] for key in ("image_id", "category_id", "bbox")} | {"score": 0.5} for a in content["annotations"]
    ]
    rows = in_form(form, rows, dataset) if form in FORMS else [] if form == "nothing" else rows
    if form == "classes from 0":
        rows = [{**row, "category_id": row["category_id"] - 1} for row in rows]
        rows.append({**rows[0], "category_id": 1})  # one that has a category, else all are refused
    (tmp_path / "r.json").write_text(json.dumps(rows))
    assert main(["--annotations", str(dataset.json_path), "--results", str(tmp_path / "r.json")]) == 0
    said = capsys.readouterr().err
    wanted = SAID | {"classes from 0": "which count from 0", "nothing": "no results in this file", "plain": ""}
    assert wanted[form] in said
    assert ("r.json" in said) == (form != "plain")


def test_boxes_that_are_right_raise_no_doubt() -> None:
    """Also where many reach out of their images, or are small, or there is one or none."""
    sizes = np.full((200, 2), (480, 640))
    rng = np.random.default_rng(0)
    first = rng.uniform(-20, (640, 480), (200, 2))
    assert doubt_of_boxes(np.concatenate([first, rng.uniform(1, 300, (200, 2))], axis=1), sizes) is None
    assert doubt_of_boxes(np.empty((0, 4)), sizes[:0]) is None
    assert doubt_of_boxes(np.array([[0.0, 0.0, 640.0, 480.0]]), sizes[:1]) is None
    assert doubt_of_boxes(np.array([[0.2, 0.1, 1.5, 0.9]]), sizes[:1]) is None
