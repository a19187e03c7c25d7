from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import cv2
import numpy as np
import pytest

from runtime.batch_settings import pipeline_settings
from runtime.coco import (
    METRIC_NAMES,
    CocoDataset,
    CocoError,
    command,
    load_coco,
    load_ground_truth,
    parse_ground_truth,
    parse_results,
    score,
)
from runtime.coco.command import main
from runtime.coco.evaluation import evaluate, score_detector
from runtime.coco.report import metrics_as_table
from runtime.coco.run import RunSettings, plan_batches
from runtime.detector import Detector
from runtime.errors import UserError
from runtime.images import ImageError
from runtime.manifest import InputShapes
from runtime.pipeline import PipelineSettings

from ...support.fakes import RedBackend, manifest_with, red_image

SIZES = [(60, 80), (80, 60), (60, 80), (64, 64), (120, 160), (80, 60), (60, 80)]


def make_dataset(folder: Path, sizes: list[tuple[int, int]] = SIZES, first_id: int = 1) -> CocoDataset:
    """Images with a red rectangle each, but the last, which is empty; annotated exactly."""
    (folder / "images").mkdir(parents=True)
    content: dict = {
        "images": [],
        "annotations": [],
        "categories": [{"id": 7, "name": "red"}, {"id": 9, "name": "other"}],
    }
    for number, (height, width) in enumerate(sizes):
        box = (8, 12 + number, width - 8, height - 4) if number < len(sizes) - 1 else None
        name = f"{number}.png"
        cv2.imwrite(str(folder / "images" / name), red_image(height, width, box)[..., ::-1])
        content["images"].append({"id": first_id + number, "file_name": name, "height": height, "width": width})
        if box is not None:
            x1, y1, x2, y2 = box
            content["annotations"].append(
                {
                    "id": number + 1,
                    "image_id": first_id + number,
                    "category_id": 7,
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": (x2 - x1) * (y2 - y1),
                    "iscrowd": 0,
                }
            )
    (folder / "set.json").write_text(json.dumps(content))
    return load_coco(folder / "set.json", folder / "images")


@pytest.fixture
def dataset(tmp_path: Path) -> CocoDataset:
    return make_dataset(tmp_path)


def test_a_detector_that_finds_everything(dataset: CocoDataset) -> None:
    found = score_detector(Detector(RedBackend()), dataset, settings=RunSettings(batch=3))
    assert found.metrics.values["AP50"] == pytest.approx(1)
    assert found.metrics.values["AP"] > 0.9
    assert found.metrics.per_class == {"red": pytest.approx(found.metrics.values["AP"]), "other": -1}
    assert found.speed.images == found.metrics.images == 7
    assert found.speed.skipped == ()
    assert found.speed.images_per_second > 0
    assert 0 < found.speed.seconds_network <= found.speed.seconds
    assert score(load_ground_truth(dataset.json_path), found.results).values == found.metrics.values


@pytest.mark.parametrize("batch", [1, 2, 100])
def test_results_do_not_depend_on_the_batch(dataset: CocoDataset, batch: int) -> None:
    def key(result: dict) -> tuple:
        return result["image_id"], -result["score"]

    reference = score_detector(Detector(RedBackend()), dataset, settings=RunSettings(batch=3))
    found = score_detector(Detector(RedBackend()), dataset, settings=RunSettings(batch=batch))
    assert sorted(found.results, key=key) == sorted(reference.results, key=key)
    assert found.metrics == reference.metrics


def test_batches_hold_one_canvas_size_each(dataset: CocoDataset) -> None:
    batches = plan_batches([Detector(RedBackend())], dataset, 2)
    assert sorted(index for members in batches for index in members) == list(range(7))
    assert max(map(len, batches)) == 2
    backend = RedBackend()
    score_detector(Detector(backend), dataset, settings=RunSettings(batch=2))
    assert sorted(shape[0] for shape in backend.batches) == sorted(map(len, batches))
    with pytest.raises(UserError, match="batch is 0"):
        plan_batches([Detector(backend)], dataset, 0)


def test_limit(dataset: CocoDataset) -> None:
    found = score_detector(Detector(RedBackend()), dataset, settings=RunSettings(limit=2))
    assert {result["image_id"] for result in found.results} == {1, 2}
    assert found.metrics.images == 2
    assert found.metrics.values["AP50"] == pytest.approx(1)  # what lies beyond is not counted as missed


def test_bad_images_are_skipped_and_left_out_of_the_score(dataset: CocoDataset) -> None:
    good = dataset.path(1).read_bytes()
    dataset.path(0).unlink()
    dataset.path(1).write_bytes(good[: len(good) // 2])
    found = score_detector(Detector(RedBackend()), dataset, settings=RunSettings(batch=3))
    assert found.speed.images == found.metrics.images == 5
    assert sorted(line.split(": ")[0] for line in found.speed.skipped) == [str(dataset.path(0)), str(dataset.path(1))]
    assert found.metrics.values["AP50"] == pytest.approx(1)


def test_a_bad_image_does_not_split_its_batch(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path, [(60, 80)] * 12)
    for index in (1, 2, 6):
        dataset.path(index).write_bytes(b"")
    backend = RedBackend()
    score_detector(Detector(backend), dataset, settings=RunSettings(batch=4))
    assert sorted(shape[0] for shape in backend.batches) == [2, 3, 4]


def test_no_image_at_all(dataset: CocoDataset) -> None:
    for index in range(len(dataset)):
        dataset.path(index).write_bytes(b"")
    with pytest.raises(ImageError, match=r"none of the 7 images could be read; the first: .*the file is empty"):
        score_detector(Detector(RedBackend()), dataset)


def test_few_images_are_in_memory_at_a_time(dataset: CocoDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = [(60, 80)] * 60
    dataset = make_dataset(dataset.root / "many", sizes)
    lock, read, most = threading.Lock(), 0, 0
    image = CocoDataset.load

    def counted(self: CocoDataset, *arguments: int) -> np.ndarray:
        nonlocal read
        with lock:
            read += 1
        return image(self, *arguments)

    class Watching(Detector):
        seen = 0

        def detect_prepared(self, images, stopwatch=None):  # type: ignore[no-untyped-def]
            nonlocal most
            with lock:
                most = max(most, read - self.seen)
            found = super().detect_prepared(images, stopwatch)
            with lock:
                self.seen += len(images)
            return found

    monkeypatch.setattr(CocoDataset, "load", counted)
    detector = Watching(RedBackend())
    score_detector(detector, dataset, settings=RunSettings(batch=4))
    assert read == detector.seen == 60
    assert 4 <= most <= PipelineSettings(4, 4, None, pipeline_settings(detector, 4).loaders, 2).inside


def test_a_model_of_other_classes(dataset: CocoDataset) -> None:
    detector = Detector(RedBackend(manifest_with(classes=("green", "blue"))))
    message = "no category there is a class of the model .classes: green, blue; categories: red, other"
    with pytest.raises(CocoError, match=message):
        score_detector(detector, dataset)


def test_a_canvas_that_the_graph_lacks(dataset: CocoDataset) -> None:
    small = Detector(RedBackend(manifest_with(inputs=InputShapes(1, 4, 64, 64, 64, 64))))
    with pytest.raises(UserError, match="exported for at most 64×64"):
        score_detector(small, dataset)


def test_the_table() -> None:
    empty = {"images": [{"id": 1}], "categories": [{"id": 7, "name": "red"}], "annotations": []}
    table = metrics_as_table(score(parse_ground_truth(empty), parse_results([], "results")))
    assert "–" in table
    assert all(name in table for name in (*METRIC_NAMES, "red"))


# The command.


def arguments(dataset: CocoDataset, *more: object) -> list[str]:
    return ["--annotations", str(dataset.json_path), *map(str, more)]


def test_command_with_a_model(dataset: CocoDataset, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out, results = tmp_path / "new" / "figures.json", tmp_path / "results.json"
    options = ["--images", dataset.root, "--json", out, "--results-out", results, "--threads", 1, "--batch", 2]
    dataset.path(2).write_bytes(b"")
    assert main([str(model), *arguments(dataset, *options)]) == 0
    figures = json.loads(out.read_text())
    assert tuple(figures)[:12] == METRIC_NAMES
    assert 0.9 < figures["AP"] <= 1
    assert figures["images"] == 6
    assert figures["skipped"] == 1
    assert figures["images_per_second"] > 0
    assert figures["per_class"] == {"red": figures["AP"], "other": -1}
    printed = capsys.readouterr()
    assert f"{100 * figures['AP']:.1f}" in printed.out
    assert "6 images in" in printed.out
    assert f"warning: skipped {dataset.path(2)}: the file is empty" in printed.err
    assert "warning: 1 of 7 images are left out of the score" in printed.err
    from pycocotools.coco import COCO

    COCO(str(dataset.json_path)).loadRes(str(results))  # pycocotools can read it
    again = tmp_path / "again.json"
    assert main(arguments(dataset, "--results", results, "--json", again)) == 0
    assert json.loads(again.read_text())["AP"] < figures["AP"]  # the skipped image now counts as missed


def test_command_with_the_coco_apis_example(shared_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    folder = shared_dir / "data" / "coco100"
    files = [
        folder / "instances_val2014_fakebbox100_results.json",
        "--annotations",
        folder / "instances_val2014_100.json",
    ]
    assert main(["--results", *map(str, files), "--json", str(tmp_path / "x.json")]) == 0
    figures = json.loads((tmp_path / "x.json").read_text())
    assert [round(figures[name], 3) for name in ("AP", "AP50", "AP75", "APs", "APm", "APl")] == [
        0.505, 0.697, 0.573, 0.586, 0.519, 0.501,
    ]  # fmt: skip
    assert [round(figures[name], 3) for name in ("AR1", "AR10", "AR100")] == [0.387, 0.594, 0.595]
    assert "  50.5   69.7   57.3   58.6   51.9   50.1   38.7   59.4   59.5" in capsys.readouterr().out


def test_command_limit_with_results(dataset: CocoDataset, tmp_path: Path) -> None:
    results = tmp_path / "r.json"
    results.write_text(json.dumps(list(score_detector(Detector(RedBackend()), dataset).results)))
    assert main(arguments(dataset, "--results", results, "--limit", 2, "--json", tmp_path / "f.json")) == 0
    assert json.loads((tmp_path / "f.json").read_text())["images"] == 2


def test_command_with_some_classes(
    dataset: CocoDataset, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    out, results = tmp_path / "f.json", tmp_path / "r.json"
    options = ["--images", dataset.root, "--json", out, "--results-out", results, "--threads", 1]
    assert main([str(model), *arguments(dataset, *options)]) == 0
    whole, everything = json.loads(out.read_text()), json.loads(results.read_text())
    assert main([str(model), *arguments(dataset, *options, "--classes", "red")]) == 0
    red = json.loads(out.read_text())
    assert red["per_class"] == {"red": whole["AP"]}
    assert json.loads(results.read_text()) == everything
    assert main([str(model), *arguments(dataset, *options, "--classes", 9)]) == 0
    other = json.loads(out.read_text())
    assert (other["AP"], other["per_class"]) == (-1, {"other": -1})
    assert json.loads(results.read_text()) == []
    results.write_text(json.dumps(everything))
    assert main(arguments(dataset, "--results", results, "--classes", 7, "--json", out)) == 0
    assert json.loads(out.read_text())["per_class"] == red["per_class"]
    assert "left out" not in capsys.readouterr().err
    with pytest.raises(UserError, match=r"class '8': no such category in .*set\.json; known: 7 red, 9 other"):
        main([str(model), *arguments(dataset, *options, "--classes", 8)])


def test_a_bad_output_folder_is_found_before_the_work(
    dataset: CocoDataset, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "detect_dataset", lambda *_: pytest.fail("worked for nothing"))
    bad = dataset.json_path / "x.json"
    with pytest.raises(UserError, match="cannot write"):
        main([str(model), *arguments(dataset, "--images", dataset.root, "--json", bad)])


def test_a_full_disk_at_the_end_does_not_cost_the_figures(
    dataset: CocoDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def full(*_: object) -> None:
        raise UserError("cannot write: No space left on device")

    (tmp_path / "r.json").write_text("[]")
    monkeypatch.setattr(command, "atomic_write", full)
    with pytest.raises(UserError):
        main(arguments(dataset, "--results", tmp_path / "r.json", "--json", tmp_path / "f.json"))
    assert "AP per class" in capsys.readouterr().out


@pytest.mark.parametrize(
    "more", [[], ["x.onnx"], ["x.onnx", "--results", "y"], ["x.onnx", "--images", "z", "--limit", "0"]]
)
def test_wrong_usage(dataset: CocoDataset, more: list[str], capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments(dataset, *more))
    assert caught.value.code == 2
    assert "error: " in capsys.readouterr().err


def run(*options: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "runtime.evaluate", *map(str, options)],
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_bad_input_from_the_command_line_is_one_line(dataset: CocoDataset, repository: Path, model: Path) -> None:
    for options in (
        ("none.onnx", "--images", dataset.root),
        (model, "--images", dataset.root / "nowhere"),
        ("--results", dataset.json_path),
    ):
        done = run(*options, *arguments(dataset), cwd=repository)
        assert done.returncode == 2
        assert done.stderr.startswith("error: ")
        assert done.stderr.count("\n") == 1


def test_images_outside_their_folder_are_read_where_this_is_allowed(dataset: CocoDataset, model: Path) -> None:
    content = json.loads(dataset.json_path.read_text())
    inside = dataset.root / "empty"
    inside.mkdir()
    for image in content["images"]:
        image["file_name"] = f"../{image['file_name']}"
    path = dataset.root / "outside.json"
    path.write_text(json.dumps(content))
    with pytest.raises(CocoError, match="leads out"):
        evaluate(model, path, inside)
    found = evaluate(model, path, inside, allow_outside=True)
    assert found.metrics.values == evaluate(model, dataset.json_path, dataset.root).metrics.values
