"""benchmarks/evaluate_benchmark.py on a few small images: commands are compared with their own network's calls."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import evaluate_benchmark
from runtime.detections import RawOutputs
from runtime.detector import Detector

from ...support.fakes import RedBackend
from .test_evaluate import make_dataset


class CountingBackend(RedBackend):
    """Takes 20 ms for a batch and remembers what it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.given: list[np.ndarray] = []

    def infer(self, images: np.ndarray, image_sizes: np.ndarray, **options: Any) -> RawOutputs:
        time.sleep(0.02)
        self.given.append(images)
        return super().infer(images, image_sizes, **options)


def test_the_bare_network_gets_what_the_commands_give_it(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path)
    backend = CountingBackend()
    with Detector(backend) as detector:
        taken = evaluate_benchmark.network_seconds(detector, dataset, 2)
        bare, backend.given = backend.given, []
        assert 0.02 * len(bare) <= taken.wall < 0.02 * len(bare) + 1
        found = evaluate_benchmark.evaluate(detector, tmp_path / "set.json", tmp_path / "images", 2)
        evaluated, backend.given = backend.given, []
        evaluate_benchmark.detect(detector, tmp_path / "images", tmp_path / "out", 2)
    for given in (evaluated, backend.given):
        assert sorted(batch.tobytes() for batch in given) == sorted(batch.tobytes() for batch in bare)
    assert found["AP"] == pytest.approx(1.0)
    assert found["detections"] >= len(dataset) - 1
    content = json.loads((tmp_path / "out" / "detections.json").read_text())
    assert len(content["images"]) == len(dataset)


def test_a_report_of_times(models: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    make_dataset(tmp_path)
    report = tmp_path / "times.json"
    arguments = [models["fp32"], "--annotations", tmp_path / "set.json", "--images", tmp_path / "images"]
    options = ["--num-images", "7", "--rounds", "2", "--threads", "1", "--json", report]
    evaluate_benchmark.main(list(map(str, [*arguments, *options])))
    content = json.loads(report.read_text())
    assert content["images"] == 7
    assert set(content["commands"]) == {"evaluate", "detect"}
    for entry in content["commands"].values():
        ratios = [one["command_s"] / one["network_s"] for one in entry["rounds"]]
        assert entry["ratio"] == pytest.approx(np.median(ratios))
        assert len(ratios) == 2
    assert "× the network's calls" in capsys.readouterr().out


def test_a_report_of_memory(models: dict[str, Path], tmp_path: Path) -> None:
    if not Path("/proc/self/fd").exists():
        pytest.skip("reads /proc")
    make_dataset(tmp_path)
    report = tmp_path / "memory.json"
    arguments = [models["fp32"], "--annotations", tmp_path / "set.json", "--images", tmp_path / "images"]
    evaluate_benchmark.main(list(map(str, [*arguments, "--memory", "4", "9", "--json", report])))
    content = json.loads(report.read_text())
    for command in ("evaluate", "detect"):
        assert list(content["peaks"][command]) == ["4", "9"]
        for peak in content["peaks"][command].values():
            assert 30 < peak["MB"] < 2000
            assert 3 <= peak["handles"] < 100
            assert 1 <= peak["threads"] < 200
        assert abs(content["kb_per_image"][command]) < 10_000
