"""Several models side by side."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtime.coco import METRIC_NAMES, CocoDataset
from runtime.coco import run as dataset_run
from runtime.coco.command import main
from runtime.coco.run import RunSettings, detect_dataset, detect_with_all
from runtime.detections import Detections
from runtime.detector import Detector
from runtime.errors import UserError
from runtime.manifest import InputShapes
from runtime.stopwatch import Stopwatch

from ...support.fakes import RedBackend, manifest_with, write_red_onnx
from .test_evaluate import make_dataset

SIZES = [(60, 80), (80, 60), (60, 80), (64, 64), (120, 160), (80, 60), (60, 80), (60, 80), (64, 64), (90, 60), (60, 80)]


@pytest.fixture
def dataset(tmp_path: Path) -> CocoDataset:
    return make_dataset(tmp_path, SIZES)


def arguments(dataset: CocoDataset, *more: object) -> list[str]:
    given = ["--annotations", dataset.json_path, "--images", dataset.root, "--threads", 1, "--backend", "cpu", *more]
    return list(map(str, given))


def run(dataset: CocoDataset, out: Path, *more: object) -> dict[str, Any]:
    assert main([*map(str, more), *arguments(dataset, "--json", out, "--batch", 2)]) == 0
    return json.loads(out.read_text())


# Side by side.


def test_each_model_has_the_figures_that_it_has_alone(
    dataset: CocoDataset, models: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    dataset.path(3).write_bytes(b"")
    names = ["fp32", "fp16", "small"]
    alone = [run(dataset, tmp_path / f"{name}.json", models[name]) for name in names]
    capsys.readouterr()
    content = run(dataset, tmp_path / "all.json", *(models[name] for name in names))
    together = content["artifacts"]
    assert [entry["artifact"] for entry in together] == [str(models[name]) for name in names]
    assert [entry["precision"] for entry in together] == ["fp32", "fp16", "int8"]
    for entry, single in zip(together, alone, strict=True):
        assert {name: entry[name] for name in METRIC_NAMES} == {name: single[name] for name in METRIC_NAMES}
        assert entry["per_class"] == single["per_class"]
        assert entry["images"] == single["images"] == len(SIZES) - 1
        assert entry["network_images_per_second"] > 0
        assert entry["times_as_fast"] > 0
        measured = [name for name in METRIC_NAMES if min(entry[name], alone[0][name]) >= 0]
        assert {name: entry["difference"][name] for name in measured} == {
            name: entry[name] - alone[0][name] for name in measured
        }
        assert all(entry["difference"][name] is None for name in METRIC_NAMES if name not in measured)
    assert together[0]["times_as_fast"] == 1
    assert abs(together[2]["difference"]["AP"]) > 0.01, "the small one is no other: this shows little"
    assert content["skipped"] == 1
    assert content["conditions"]["batch"] == 2
    printed = capsys.readouterr()
    assert f"warning: skipped {dataset.path(3)}" in printed.err
    table = printed.out.splitlines()
    (row,) = [line for line in table if line.startswith(str(models["small"])) and ";" not in line]
    assert f"{100 * together[2]['AP']:.1f}" in row.split()
    assert f"{100 * together[2]['difference']['AP']:+.2f}" in row.split()
    assert any(line.split()[-3:] == ["img/s", "×", "first"] for line in table)


def test_one_model_may_stand_beside_itself_on_another_backend(dataset: CocoDataset, models: dict[str, Path]) -> None:
    assert main([f"{models['fp32']}@cpu", str(models["fp32"]), *arguments(dataset)]) == 0


class Recorded(Detector):
    """Remembers which images it was given, with its name, in a list that several share."""

    def __init__(self, name: str, calls: list[tuple[str, int, bool]]) -> None:
        super().__init__(RedBackend())
        self.name, self.calls = name, calls

    def detect_prepared(self, images: Sequence[Any], stopwatch: Stopwatch | None = None) -> list[Detections]:
        self.calls.append((self.name, len(images), stopwatch is not None))
        return super().detect_prepared(images, stopwatch)


def test_models_run_in_turn_each_canvas_warmed_up_before(dataset: CocoDataset) -> None:
    calls: list[tuple[str, int, bool]] = []
    found = detect_with_all([Recorded(name, calls) for name in "AB"], dataset, RunSettings(2))
    timed = [(name, size) for name, size, is_timed in calls if is_timed]
    pairs = list(zip(timed[::2], timed[1::2], strict=True))
    assert all({a[0], b[0]} == {"A", "B"} and a[1] == b[1] for a, b in pairs)
    firsts = [a[0] for a, _ in pairs]
    assert abs(firsts.count("A") - firsts.count("B")) <= 1
    warm = [name for name, _, is_timed in calls if not is_timed]
    canvases = {Detector(RedBackend()).canvas_hw(size) for size in SIZES}
    assert warm == ["A", "B"] * len(canvases)
    for before, call in itertools.pairwise(calls):
        assert call[1] == before[1] or before[2]  # a canvas' warm-up comes right before its first timed run
    assert len(found[0].speed.seconds_per_image) == len(pairs)
    assert list(found[0].results) == list(found[1].results) == list(detect_dataset(found_by(), dataset).results)


def found_by() -> Detector:
    return Detector(RedBackend())


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_no_model_always_comes_first(count: int) -> None:
    orders = [dataset_run.turn_order(count, turn) for turn in range(2 * count)]
    assert all(sorted(order) == list(range(count)) for order in orders)
    places = np.array([[order.index(number) for order in orders] for number in range(count)])
    assert places.sum(axis=1).tolist() == [places.sum() // count] * count


def test_an_image_is_read_once_for_all(dataset: CocoDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    image = CocoDataset.load

    def counted(self: CocoDataset, index: int, *more: int) -> np.ndarray:
        read.append(index)
        return image(self, index, *more)

    monkeypatch.setattr(CocoDataset, "load", counted)
    detect_with_all([found_by(), found_by(), found_by()], dataset, RunSettings(4))
    assert sorted(read) == list(range(len(SIZES)))


def test_models_that_do_not_go_together(dataset: CocoDataset, models: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no category there is a class of the model .classes: blue, green"):
        main([str(models["fp32"]), str(models["foreign"]), *arguments(dataset)])
    with pytest.raises(UserError, match="batch 2, but the graph was exported for 4"):
        main([str(models["fp32"]), str(models["large batches"]), *arguments(dataset, "--batch", 2)])
    with pytest.raises(UserError, match="batch 17, but the graph was exported for 1 to 16"):
        main([str(models["fp32"]), *arguments(dataset, "--batch", 17)])
    two = manifest_with(inputs=InputShapes(1, 2, 32, 512, 32, 512))
    with pytest.raises(UserError, match="no batch suits all graphs: one takes 4 or more, one at most 2"):
        main([str(write_red_onnx(tmp_path / "2.onnx", two)), str(models["large batches"]), *arguments(dataset)])


@pytest.mark.parametrize(
    "more",
    [
        ["a.onnx", "b.onnx", "--results-out", "r.json"],
        ["a.onnx", "b.onnx", "--shard", "0/2", "--results-out", "r.json"],
        ["a.onnx", "--shard", "0/2"],
        ["a.onnx", "--shard", "0/2", "--results-out", "r.json", "--json", "f.json"],
        ["--shard", "0/2", "--results-out", "r.json", "--results", "x.json"],
    ],
)
def test_wrong_usage(dataset: CocoDataset, more: list[str], capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as caught:
        main([*more, *arguments(dataset)])
    assert caught.value.code == 2
    assert "error: " in capsys.readouterr().err
