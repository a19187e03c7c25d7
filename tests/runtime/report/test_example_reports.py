"""Reports of one model, of models side by side, and of results alone, opened in a browser at two widths.

The slow ones are of real detectors: the quickstart's in `runs/quickstart`, and one of BCCD named by ATSS_BCCD_MODEL.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from runtime.coco import CocoDataset
from runtime.coco.command import main as evaluate
from runtime.report.__main__ import main
from runtime.report.thumbnails import MOST
from tests.support.chromium import Opened

from ..coco.test_evaluate import make_dataset

pytest.importorskip("jinja2", reason="the page's library")
pytest.importorskip("matplotlib", reason="the page's charts")

WIDTHS = (1280, 390)


def data_of(dataset: CocoDataset) -> list[str]:
    return ["--annotations", str(dataset.json_path), "--images", str(dataset.root)]


def report(folder: Path, *arguments: object) -> Path:
    out = folder / "report.html"
    assert main([*map(str, arguments), "-o", str(out), "--resamples", "50"]) == 0
    return out


def ap_of(folder: Path, *arguments: object) -> str:
    """The AP that `evaluate` has, as the page writes it."""
    evaluate([*map(str, arguments), "--json", str(folder / "metrics.json")])
    return f"{100 * json.loads((folder / 'metrics.json').read_text())['AP']:.1f}"


def require_sound(browser: Any, path: Path, aps: list[str], most: int) -> None:
    """The page opens at both widths without a complaint, shows these APs, and its filters choose among its images."""
    for width in WIDTHS:
        opened = Opened(browser, path, viewport={"width": width, "height": 900})
        page = opened.page
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert [text.split()[0] for text in page.locator(".card .big").all_inner_texts()] == aps
        assert page.locator("#changes").count() == (len(aps) > 1)
        assert opened.fitting() == most
        page.locator("#f-score").fill("1")
        page.select_option("#f-kind", "background")
        assert opened.fitting() == 0
        page.locator("#f-reset").click()
        page.wait_for_function("n => document.querySelector('#shown').textContent.includes(`of ${n} `)", arg=most)
        assert opened.complaints == []
        opened.context.close()


def test_a_model(browser: Any, model: Path, tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path)
    path = report(tmp_path, model, *data_of(dataset))
    require_sound(browser, path, [ap_of(tmp_path, model, *data_of(dataset))], len(dataset))


def test_models_side_by_side(browser: Any, model: Path, tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path)
    path = report(tmp_path, model, f"{model}@cpu", model, *data_of(dataset))
    require_sound(browser, path, 3 * [ap_of(tmp_path, model, *data_of(dataset))], len(dataset))


def test_results_alone(browser: Any, tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path)
    rows = [{"image_id": 1, "category_id": 7, "bbox": [8, 12, 64, 44], "score": 0.9}]
    (tmp_path / "r.json").write_text(json.dumps(rows))
    arguments = ("--results", tmp_path / "r.json", "--annotations", dataset.json_path)
    require_sound(browser, report(tmp_path, *arguments), [ap_of(tmp_path, *arguments)], len(dataset))


@pytest.mark.slow
def test_the_quickstarts_model_and_its_results(browser: Any, repository: Path, tmp_path: Path) -> None:
    model, data = repository / "runs/quickstart/model.onnx", repository / "data/shapes"
    if not model.is_file() or not data.is_dir():
        pytest.skip("run scripts/quickstart.sh first")
    arguments = ("--annotations", data / "val.json", "--images", data / "val")
    ap = ap_of(tmp_path, model, *arguments, "--results-out", tmp_path / "r.json")
    path = report(tmp_path, model, *arguments)
    assert path.stat().st_size < 5e6
    require_sound(browser, path, [ap], MOST)
    require_sound(browser, report(tmp_path, "--results", tmp_path / "r.json", *arguments[:2]), [ap], MOST)


@pytest.mark.slow
def test_bccd_in_float_and_in_both_widths_of_int8(browser: Any, shared_dir: Path, tmp_path: Path) -> None:
    named, data = os.environ.get("ATSS_BCCD_MODEL"), shared_dir / "data/bccd"
    if named is None:
        pytest.skip("name an exported detector of BCCD by ATSS_BCCD_MODEL")
    from export.quantize import main as quantize

    models = [Path(named)]
    for target in ("cpu", "cpu-vnni"):
        models.append(tmp_path / f"{target}.onnx")
        chosen = ("--precision", "int8", "--target", target, "--images", data / "images", "-o", models[-1])
        chosen += ("--annotations", data / "trainval.json")
        assert quantize([str(named), *map(str, chosen)]) == 0
    arguments = ("--annotations", data / "test.json", "--images", data / "images")
    path = report(tmp_path, *models, *arguments)
    assert path.stat().st_size < 8e6
    require_sound(browser, path, [ap_of(tmp_path, model, *arguments) for model in models], 72)
