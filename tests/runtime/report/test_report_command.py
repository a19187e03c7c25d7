"""`atss report` and `evaluate --report`: the figures are evaluate's, whatever the data set and the models are."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from runtime.coco import METRIC_NAMES, CocoDataset, load_coco, load_coco_with_truth, score
from runtime.coco.command import main as evaluate
from runtime.coco.scored import Scored, Scoring
from runtime.detection_filter import DetectionFilter
from runtime.errors import UserError
from runtime.report.__main__ import main
from runtime.report.collect import Wishes, collect, short_names
from runtime.report.content import ReportContent
from runtime.report.findings import find
from runtime.report.write import report_evaluation

from ...support.fakes import MANIFEST, write_red_onnx
from ..coco.test_evaluate import make_dataset

pytest.importorskip("jinja2", reason="the page's library")
pytest.importorskip("matplotlib", reason="the page's colours")

FAST = ("--resamples", "20")


@pytest.fixture
def dataset(tmp_path: Path) -> CocoDataset:
    return make_dataset(tmp_path)


@pytest.fixture
def contents(monkeypatch: pytest.MonkeyPatch) -> list[ReportContent]:
    """The contents of the reports that are written, which are written all the same."""
    from runtime.report import write

    found: list[ReportContent] = []

    def keep(scoring: Scoring, wishes: Wishes) -> ReportContent:
        found.append(collect(scoring, wishes))
        return found[-1]

    monkeypatch.setattr(write, "collect", keep)
    return found


def arguments(dataset: CocoDataset, *more: object) -> list[str]:
    return ["--annotations", str(dataset.json_path), "--images", str(dataset.root), *map(str, more)]


def figures(dataset: CocoDataset, folder: Path, *more: object) -> dict[str, Any]:
    """What `evaluate` writes."""
    evaluate([*map(str, more), "--json", str(folder / "metrics.json")])
    found: dict[str, Any] = json.loads((folder / "metrics.json").read_text())
    return found


def require_equal(content: ReportContent, metrics: dict[str, Any], number: int = 0) -> None:
    model = content.models[number]
    assert {name: model.metrics[name].value for name in METRIC_NAMES} == {name: metrics[name] for name in METRIC_NAMES}
    assert {name: one.value for name, one in model.per_class.items()} == metrics["per_class"]
    assert content.data.images == metrics["images"]
    for one in (*model.metrics.values(), *model.per_class.values()):
        assert one.low is None or one.high is None or one.low <= one.value <= one.high


def write_results(dataset: CocoDataset, path: Path, scores: tuple[float, ...] = (0.9, 0.4)) -> Path:
    """A box of category 7 that hits in image 1 and another that is nowhere, and one in a crowd of image 3."""
    rows = [
        {"image_id": 1, "category_id": 7, "bbox": [8, 12, 64, 44], "score": scores[0]},
        {"image_id": 2, "category_id": 7, "bbox": [0, 0, 9, 9], "score": scores[1]},
        {"image_id": 3, "category_id": 9, "bbox": [8, 14, 64, 40], "score": 0.7},
    ]
    path.write_text(json.dumps(rows))
    return path


def with_regions(dataset: CocoDataset) -> CocoDataset:
    """The data set with a crowd in image 3 and a region to ignore in image 4."""
    content = json.loads(dataset.json_path.read_text())
    for number, (image, more) in enumerate({3: {"iscrowd": 1}, 4: {"ignore": 1}}.items()):
        box = {"id": 100 + number, "image_id": image, "category_id": 9, "bbox": [4, 4, 70, 50], "area": 3500}
        content["annotations"].append(box | more)
    dataset.json_path.write_text(json.dumps(content))
    return load_coco(dataset.json_path, dataset.root)


def test_a_models_figures_are_evaluates(
    dataset: CocoDataset, model: Path, tmp_path: Path, contents: list[ReportContent]
) -> None:
    out, card = tmp_path / "r.html", tmp_path / "card.md"
    assert main([str(model), *arguments(dataset, "-o", out, "--card", card, *FAST)]) == 0
    require_equal(contents[0], figures(dataset, tmp_path, model, *arguments(dataset)))
    assert out.read_text().lower().startswith("<!doctype html>")
    assert card.read_text().startswith("---\n")
    found = contents[0].models[0]
    assert found.speed is not None
    assert {"decode", "infer"} <= {stage.name for stage in found.speed.stages}
    assert found.manifest is not None
    assert found.manifest["recipe"] == "fake"
    assert len(contents[0].images) == len(dataset)
    assert sum(one.truth != () for one in contents[0].images) == len(dataset) - 1


def test_crowds_regions_and_classes(dataset: CocoDataset, tmp_path: Path, contents: list[ReportContent]) -> None:
    dataset = with_regions(dataset)
    results = write_results(dataset, tmp_path / "r.json")
    for classes in ((), ("--classes", "9"), ("--classes", "red")):
        more = [*arguments(dataset)[:2], *classes]
        main(["--results", str(results), *more, "-o", str(tmp_path / "r.html"), "--score", "0.1", *FAST])
        require_equal(contents[-1], figures(dataset, tmp_path, "--results", results, *more))
    all_of_them = contents[0]
    kinds = {box.kind for image in all_of_them.images for box in image.detections[0]}
    assert "ignored" in kinds
    assert all(image.path is None for image in all_of_them.images)
    assert contents[1].data.classes == ("other",)


def test_an_image_that_cannot_be_read_is_left_out(
    dataset: CocoDataset, model: Path, tmp_path: Path, contents: list[ReportContent]
) -> None:
    dataset.path(2).write_bytes(b"")
    main([str(model), *arguments(dataset, "-o", tmp_path / "r.html", *FAST)])
    require_equal(contents[0], figures(dataset, tmp_path, model, *arguments(dataset)))
    assert contents[0].data.images == len(dataset) - 1
    assert "left out of the score" in contents[0].models[0].problems[-1]
    assert dataset.file_names[2] not in {image.name for image in contents[0].images}


def test_models_with_other_orders_of_classes_and_results_beside_them(
    dataset: CocoDataset, model: Path, tmp_path: Path, contents: list[ReportContent]
) -> None:
    turned = write_red_onnx(tmp_path / "turned.onnx", replace(MANIFEST, classes=("other", "red"), category_ids=(9, 7)))
    results = write_results(dataset, tmp_path / "r.json")
    main(
        [
            *(str(model), str(turned), f"{model}@cpu"),
            *arguments(dataset, "--results", f"theirs={results}", "-o", tmp_path / "r.html", *FAST),
        ]
    )
    content = contents[0]
    assert [one.name for one in content.models][1:] == ["turned.onnx", f"{model.name}@cpu", "theirs"]
    for number, one in enumerate((model, turned, f"{model}@cpu")):
        require_equal(content, figures(dataset, tmp_path, one, *arguments(dataset)), number)
    require_equal(content, figures(dataset, tmp_path, "--results", results, *arguments(dataset)[:2]), 3)
    same = content.models[2].changes
    assert same is not None
    assert sum(same.counts.values()) == 0
    assert same.unchanged == len(dataset) - 1
    assert content.models[0].changes is None
    theirs = content.models[3]
    assert theirs.changes is not None
    assert theirs.changes.counts["lost"] >= len(dataset) - 2
    lost = [box for image in content.images for box in image.detections[0] if box.changes[2] == "lost"]
    assert len(lost) == theirs.changes.counts["lost"]
    assert theirs.difference is not None
    gap = theirs.metrics["AP"].value - content.models[0].metrics["AP"].value
    assert theirs.difference["AP"].value == pytest.approx(gap)


def test_evaluate_writes_the_same_report(
    dataset: CocoDataset, model: Path, tmp_path: Path, contents: list[ReportContent]
) -> None:
    out = tmp_path / "r.html"
    more = arguments(dataset, "--json", tmp_path / "m.json", "--report", out)
    assert evaluate([str(model), *more], report_evaluation) == 0
    require_equal(contents[0], json.loads((tmp_path / "m.json").read_text()))
    assert out.is_file()
    evaluate([str(model), f"{model}@cpu", *arguments(dataset, "--report", out, "--score", "0.3")], report_evaluation)
    assert contents[1].min_score == 0.3
    assert [one.changes is None for one in contents[1].models] == [True, False]
    assert contents[1].models[1].metrics == contents[1].models[0].metrics
    with pytest.raises(SystemExit):
        evaluate([str(model), *more])  # without a writer there is no such option


@pytest.mark.parametrize(
    ("views", "words"),
    [
        (("--scales", 24, 48, "--flip"), "shorter sides 24 and 48, mirrored"),
        (("--scales", 24, "--vote"), "shorter side 24, boxes averaged"),
        (("--tiles", 32, "--overlap", 0.5), "tiles of 32 px, overlap 0.5, and the whole image, merged by ios"),
        (("--tiles", 40, "--merge", "nms", "--no-whole", "--flip"), "mirrored, tiles of 40 px, overlap 0.2, without"),
    ],
)
def test_views_are_those_of_evaluate(
    dataset: CocoDataset, model: Path, tmp_path: Path, contents: list[ReportContent], views: tuple[Any, ...], words: str
) -> None:
    card = tmp_path / "card.md"
    main([str(model), *arguments(dataset, "-o", tmp_path / "r.html", "--card", card, "--limit", 4, *FAST, *views)])
    assert "Images: the first 4 of the annotations." in card.read_text()
    assert f"Views: {words}" in card.read_text(), "an AP of tiles must not be taken for that of whole images"
    more = (model, *arguments(dataset, "--limit", 4, *views))
    expected = figures(dataset, tmp_path, *more)
    require_equal(contents[0], expected)
    evaluate([*map(str, more), "--report", str(tmp_path / "e.html")], report_evaluation)
    require_equal(contents[1], expected)
    for content in contents:
        assert "images: the first 4 of the annotations" in content.notes
        assert f"views: {words}" in "\n".join(content.notes)
        assert content.models[0].speed is not None
        assert [stage.name for stage in content.models[0].speed.stages] == ["network"]


def test_images_above_the_limit_have_no_thumbnail(
    dataset: CocoDataset, model: Path, tmp_path: Path, contents: list[ReportContent]
) -> None:
    out = tmp_path / "r.html"
    results = write_results(dataset, tmp_path / "r.json")
    main(["--results", str(results), *arguments(dataset, "-o", out, *FAST)])
    assert "data:image/jpeg" in out.read_text()
    few = ("--max-megapixels", "0.001")  # the images have more
    main(["--results", str(results), *arguments(dataset, "-o", out, *few, *FAST)])
    assert "data:image/jpeg" not in out.read_text()
    evaluate([str(model), *arguments(dataset, "--report", out, "--tiles", 32, *few)], report_evaluation)
    assert "data:image/jpeg" not in out.read_text()
    assert [one.max_pixels for one in contents[1:]] == [1000, 1000]


def test_refusals_are_one_line(
    dataset: CocoDataset, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = ("-o", tmp_path / "r.html")
    bare = json.loads(dataset.json_path.read_text())
    del bare["annotations"]
    (tmp_path / "test.json").write_text(json.dumps(bare))
    test_set = load_coco(tmp_path / "test.json", dataset.root)
    with pytest.raises(UserError, match="has no annotations, as COCO's test sets"):
        main([str(model), *arguments(test_set, *out)])
    more = arguments(dataset, "--shard", "0/2", "--results-out", tmp_path / "part.json")
    evaluate([str(model), *more])
    with pytest.raises(UserError, match="is a part of an evaluation; merge all parts first"):
        main(["--results", str(tmp_path / "part.json"), *arguments(dataset, *out)])
    with pytest.raises(UserError, match=r"no log\.jsonl there"):
        main([str(model), *arguments(dataset, *out, "--train", tmp_path)])
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(UserError, match=r"a report needs jinja2, .* pip install 'atss-toolkit\[report\]'"):
        main([str(model), *arguments(dataset, *out)])
    assert not (tmp_path / "r.html").exists()


def test_nothing_is_found_and_nothing_is_there(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path)
    path = tmp_path / "none.json"
    path.write_text("[]")
    for content in ({}, {"annotations": []}):
        dataset.json_path.write_text(json.dumps(json.loads(dataset.json_path.read_text()) | content))
        main(["--results", str(path), *arguments(dataset, "-o", tmp_path / "r.html", *FAST)])
        assert (tmp_path / "r.html").stat().st_size > 10_000


def headlines(content: ReportContent) -> str:
    return "\n".join(f"{one.headline} {one.detail}" for one in find(content))


def test_detections_without_an_object_to_find_are_not_called_none(
    dataset: CocoDataset, tmp_path: Path, contents: list[ReportContent]
) -> None:
    path = write_results(dataset, tmp_path / "r.json")
    card = tmp_path / "card.md"
    dataset.json_path.write_text(json.dumps(json.loads(dataset.json_path.read_text()) | {"annotations": []}))
    more = arguments(dataset, "-o", tmp_path / "r.html", "--card", card, "--limit", 1, *FAST)
    main(["--results", str(path), *more])
    (content,) = contents
    text = headlines(content)
    assert "0.5 or more: there is no object to find, so that no threshold is best." in text
    assert "finds no" not in text
    assert "probabilit" not in text, "without objects every detection is wrong"
    assert "There was nothing to measure" in text
    assert content.models[0].curves is None, "their mean over no class would be 0"
    assert content.models[0].detections == 1, "only those of the first image are scored"
    assert "Precision and recall: there are no curves" in " ".join((tmp_path / "r.html").read_text().split())
    written = card.read_text()
    assert "on 1 image with 0 objects of" in written
    assert "| results file SHA-256 |" in written, "no file of a model is known"
    assert "| file SHA-256 |" not in written


def test_scores_that_are_no_probabilities_are_named(
    dataset: CocoDataset, tmp_path: Path, contents: list[ReportContent]
) -> None:
    for scores in ((4.0, 2.5), (0.9, -3.0), (0.3, 0.2)):
        path = write_results(dataset, tmp_path / "r.json", scores)
        main(["--results", str(path), *arguments(dataset, "-o", tmp_path / "r.html", *FAST)])
    *outside, inside = map(headlines, contents)
    assert all("Scores are no probabilities: some lie outside 0 to 1." in text for text in outside)
    assert not any("calibration error" in text for text in outside)
    assert "Scores are higher than the share of right detections. The expected calibration error is" in inside


def test_scores_choose_what_is_shown(dataset: CocoDataset, tmp_path: Path) -> None:
    path = write_results(dataset, tmp_path / "r.json")
    found, truth = load_coco_with_truth(dataset.json_path, dataset.root)
    from runtime.coco import load_results

    results = load_results(path)
    ids = found.image_ids.tolist()
    kept = DetectionFilter()
    scoring = Scoring(
        found, truth, kept, (Scored(path, "r", results, ids, score(truth, results, ids, kept)),), True, {}
    )
    for least, shown in ((0.0, 3), (0.5, 2), (0.8, 1), (1.0, 0)):
        content = collect(scoring, Wishes(min_score=least, resamples=0))
        assert sum(len(image.detections[0]) for image in content.images) == shown
    best = collect(scoring, Wishes(resamples=0))
    assert best.models[0].f1 is not None
    assert best.min_score == best.models[0].f1.best_score
    # Image 2: a wrong detection of 0.4 and a missed object; image 1: nothing is wrong.
    worst = {image.name: image.badness for image in collect(scoring, Wishes(min_score=0, resamples=0)).images}
    assert worst["1.png"] == pytest.approx(1.4)
    assert worst["0.png"] == 0


def test_names_are_short_and_distinct() -> None:
    assert short_names(["runs/a.onnx", "b.onnx@cpu"]) == ["a.onnx", "b.onnx@cpu"]
    assert short_names(["x/m.onnx", "y/m.onnx", "y/m.onnx"]) == ["x/m.onnx", "y/m.onnx", "y/m.onnx #2"]
