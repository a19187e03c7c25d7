"""benchmarks/precision_table.py and benchmarks/calibration_methods.py: their own arithmetic, and a run of each."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from runtime.benchmark.measuring import distribution
from runtime.coco.results import Results, join_results
from runtime.coco.results_files import parse_results

from .conftest import Exported
from .quantization.test_quantize import own_detections


def load_script(repository: Path, name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, repository / "benchmarks" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def script(repository: Path) -> ModuleType:
    return load_script(repository, "precision_table")


def results(image_id: int, scores: list[float], shift: float = 0.0) -> Results:
    count = len(scores)
    boxes = np.array([[100.0 * i + shift, 0, 50, 50] for i in range(count)]).reshape(count, 4)
    return Results(np.full(count, image_id), np.ones(count, np.int64), boxes, np.array(scores))


def test_shares_of_detections_that_are_alike(script: ModuleType) -> None:
    nothing = parse_results([], "results")
    assert script.share_alike(nothing, nothing) == 1
    three = results(7, [0.9, 0.5, 0.3])
    assert script.share_alike(three, nothing) == script.share_alike(nothing, three) == 0
    assert script.share_alike(three, three) == 1
    assert script.share_alike(three, results(8, [0.9, 0.5, 0.3])) == 0  # of another image
    assert script.share_alike(three, results(7, [0.9, 0.5, 0.3], shift=2.0)) == 1  # 2 px
    assert script.share_alike(three, results(7, [0.9, 0.5, 0.3], shift=10.0)) == 0
    assert script.share_alike(three, results(7, [0.9, 0.42, 0.3])) == pytest.approx(4 / 6)
    assert script.share_alike(three, results(7, [0.9, 0.5, 0.3, 0.09])) == 1  # of too low a score
    assert script.share_alike(join_results([three, results(8, [0.8])]), three) == pytest.approx(6 / 7)


def test_differences_are_those_to_float32_in_the_same_runtime(script: ModuleType) -> None:
    first = script.Row("fp32", 100, 1.0, 0.5, {"cpu": 0.5, "openvino": 0.49})
    second = script.Row("int8 cpu", 26, 0.26, 0.48, {"cpu": 0.481, "openvino": 0.48}, 0.95)
    second.times_as_fast["cpu"] = distribution([1.5, 2.0, 2.5])
    lines = script.table({"fp32": first, "int8 cpu": second}, ["cpu", "openvino"]).splitlines()
    assert lines[2] == "| fp32 | 50.00 | 50.00 | 49.00 |  | 1.000 |  |  |"
    assert lines[3] == (
        "| int8 cpu | 48.00 (-2.00) | 48.10 (-1.90) | 48.00 (-1.00) | 95.0% | 0.260 | 2.00 (1.75-2.25) |  |"
    )


@pytest.mark.slow
def test_a_table(script: ModuleType, exported: Exported, images: Path, tmp_path: Path) -> None:
    truth = own_detections(exported.model, images, tmp_path / "val.json")
    arguments = ["--calibrate", str(images), "--images", str(images), "--rounds", "1", "--num-images", "1"]
    arguments += ["--annotations", str(truth), "--json", str(tmp_path / "table.json")]
    assert script.main([str(exported.checkpoint), *arguments]) == 0  # from the checkpoint
    rows = {row["name"]: row for row in json.loads((tmp_path / "table.json").read_text())["rows"]}
    assert rows.keys() == {"fp32", "fp16", "bf16", "int8 cpu", "int8 cpu-vnni", "int8 tensorrt", "fp8"}
    assert rows["fp32"]["ap_emulated"] == rows["fp32"]["ap"]["cpu"] > 0.9
    assert rows["bf16"]["ap"] == {}
    assert all(0 < row["ap_emulated"] <= 1 for row in rows.values())
    assert rows["int8 cpu"]["times_as_fast"].keys() == {"cpu", "openvino"}
    assert rows["int8 tensorrt"]["size_ratio"] < rows["fp16"]["size_ratio"] < 1


@pytest.mark.slow
def test_methods_are_compared_on_images_that_calibrated_nothing(
    repository: Path, exported: Exported, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script = load_script(repository, "calibration_methods")
    truth = own_detections(exported.model, images, tmp_path / "train.json")
    arguments = ["--annotations", str(truth), "--images", str(images), "--json", str(tmp_path / "methods.json")]
    assert script.main([str(exported.model), *arguments, "--parts", "2"]) == 0
    said = capsys.readouterr().out
    assert "part 1 of 2: calibrated on " in said
    found = json.loads((tmp_path / "methods.json").read_text())
    assert found["conditions"]["images"] == 3
    assert found["ap"]["fp32"] > 0.9
    assert len(found["ap"]) == 13
