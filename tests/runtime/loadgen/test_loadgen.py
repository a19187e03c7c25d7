from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtime.coco import CocoDataset
from runtime.coco.evaluation import score_detector
from runtime.coco.run import RunSettings
from runtime.detections import RawOutputs
from runtime.detector import Detector
from runtime.errors import UserError
from runtime.images import ImageError
from runtime.loadgen import __main__ as command
from runtime.loadgen import settings as loadgen_settings
from runtime.loadgen.__main__ import main
from runtime.loadgen.logs import FAILED, SUMMARY, LoadgenError
from runtime.loadgen.run import run_loadgen
from runtime.loadgen.settings import SCENARIOS, Estimate, Scenario, Target, settings_for

from ...support.fakes import RedBackend, write_red_onnx
from ..coco.test_evaluate import make_dataset

SIZES = [(60, 80), (80, 60), (60, 80), (64, 64), (120, 160), (80, 60), (60, 80), (64, 64), (60, 80), (80, 60)]
FAST = Estimate({1: 0.001, 2: 0.002, 4: 0.003, 8: 0.004}, 2000.0)
SHORT = ["--seconds", "0.2", "--backend", "cpu", "--threads", "1"]


@pytest.fixture
def dataset(tmp_path: Path) -> CocoDataset:
    return make_dataset(tmp_path, SIZES)


@pytest.fixture
def library() -> Any:
    return pytest.importorskip("mlperf_loadgen", reason="extra `loadgen`")


@pytest.fixture(autouse=True)
def quick_warmup(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loadgen_settings, "WARMUP_SECONDS", 0.02)


# Runs.


class FailingBackend(RedBackend):
    """Works so many times, then never again."""

    def __init__(self, times: int) -> None:
        super().__init__()
        self.left = times

    def infer(self, images: np.ndarray, image_sizes: np.ndarray, **options: Any) -> RawOutputs:
        self.left -= 1
        if self.left < 0:
            raise UserError("out of memory")
        return super().infer(images, image_sizes)


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_accuracy_mode_equals_evaluate(
    dataset: CocoDataset, model: Path, tmp_path: Path, scenario: Scenario, library: Any
) -> None:
    out = tmp_path / "log"
    options = ["--images", dataset.root, "--annotations", dataset.json_path, "-o", out, "--accuracy", "--num-images", 3]
    assert main([str(model), "--scenario", scenario, *map(str, options), *SHORT, "--batch", "4", "--qps", "200"]) == 0
    with Detector(model, backend="cpu", threads=1) as detector:
        expected = score_detector(detector, dataset)
    found = json.loads((out / "result.json").read_text())
    assert {name: found[name] for name in expected.metrics.values} == expected.metrics.values
    assert found["per_class"] == expected.metrics.per_class
    assert found["images"] == len(SIZES)
    assert found["AP50"] == pytest.approx(1)


def test_accuracy_mode_leaves_out_what_evaluate_leaves_out(
    dataset: CocoDataset, model: Path, tmp_path: Path, library: Any, capsys: pytest.CaptureFixture
) -> None:
    dataset.path(1).write_bytes(b"")
    out = tmp_path / "log"
    options = ["--images", dataset.root, "--annotations", dataset.json_path, "-o", out, "--accuracy", "--limit", 5]
    assert main([str(model), "--scenario", "Offline", *map(str, options), *SHORT]) == 0
    with Detector(model, backend="cpu", threads=1) as detector:
        expected = score_detector(detector, dataset, settings=RunSettings(limit=5))
    found = json.loads((out / "result.json").read_text())
    assert {name: found[name] for name in expected.metrics.values} == expected.metrics.values
    assert found["images"] == 4
    assert f"skipped {dataset.path(1)}" in capsys.readouterr().err


@pytest.mark.parametrize("scenario", ["SingleStream", "Offline", "Server"])
def test_a_short_run_is_valid(
    dataset: CocoDataset,
    model: Path,
    tmp_path: Path,
    scenario: str,
    library: Any,
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "log"
    monkeypatch.setitem(loadgen_settings.LEAST_QUERIES, "Server", 470)
    options = ["--images", str(dataset.root), "-o", str(out), *SHORT, "--latency-ms", "10000", "--qps", "400"]
    assert main([str(model), "--scenario", scenario, *options]) == 0
    text = (out / SUMMARY).read_text()
    assert "Result is : VALID" in text
    assert "No errors encountered during test." in text
    printed = capsys.readouterr().out
    assert f"{scenario}, performance: VALID (unverified, and no MLPerf submission)" in printed
    result = json.loads((out / "result.json").read_text())
    assert result["is_valid"] is True
    settings = json.loads((out / "settings.json").read_text())
    assert settings["settings"]["scenario"] == scenario
    assert settings["settings"]["min_duration_ms"] == 200
    assert settings["artifact"]["precision"] == "fp32"
    assert settings["images"]["count"] == len(SIZES)
    for name in ("loadgen", "estimate", "machine", "run", "timed", "status", "target"):
        assert settings[name]


def test_an_offline_run_that_was_too_short_is_repeated_with_more(
    dataset: CocoDataset,
    model: Path,
    tmp_path: Path,
    library: Any,
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As on a machine that others kept busy during the warm-up."""
    asked = []

    def run(detector: Detector, paths: Any, target: Target, settings: dict[str, Any], found: Any, folder: Path) -> None:
        asked.append(settings["offline_expected_qps"])
        verdict = "Result is : INVALID\n  Min duration satisfied : NO" if len(asked) < 2 else "Result is : VALID"
        (folder / SUMMARY).write_text(f"Samples per second: 80\n{verdict}\n")

    monkeypatch.setattr(command, "estimate", lambda *_: Estimate({}, 50.0))
    monkeypatch.setattr(command, "run_loadgen", run)
    options = ["--images", str(dataset.root), "-o", str(tmp_path / "log"), *SHORT]
    assert main([str(model), "--scenario", "Offline", *options]) == 0
    assert asked == [75, 120]
    printed = capsys.readouterr().out
    assert "Offline: the run was too short at 80.0 images/s; repeating it with more images" in printed
    assert "Offline, performance: VALID" in printed
    assert json.loads((tmp_path / "log" / "settings.json").read_text())["estimate"]["images_per_second"] == 80


def test_a_bound_that_is_missed_is_invalid(
    dataset: CocoDataset, model: Path, tmp_path: Path, library: Any, capsys: pytest.CaptureFixture
) -> None:
    options = ["--images", str(dataset.root), "-o", str(tmp_path / "log"), *SHORT, "--latency-ms", "0.001"]
    assert main([str(model), "--scenario", "Server", *options, "--qps", "3000"]) == 1
    printed = capsys.readouterr().out
    assert "Server, performance: INVALID" in printed
    assert "Reduce target QPS" in printed


def run_fake(backend: RedBackend, paths: list[Path], scenario: Scenario, folder: Path, library: Any) -> None:
    target = Target(scenario, False, seconds=0.3, batch=2, queries_per_second=1500.0)
    folder.mkdir(exist_ok=True)
    run_loadgen(Detector(backend), paths, target, settings_for(target, FAST, library), FAST, folder)


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_a_query_that_fails_is_reported_and_nothing_hangs(
    dataset: CocoDataset, tmp_path: Path, scenario: Scenario, library: Any
) -> None:
    paths, folder = [dataset.path(index) for index in range(len(dataset))], tmp_path / "log"
    with pytest.raises(UserError, match="out of memory"):
        run_fake(FailingBackend(5), paths, scenario, folder, library)
    assert not (folder / SUMMARY).exists()  # it may say VALID of answers that were none
    assert (folder / FAILED).exists()


def test_an_image_that_vanished_is_reported(dataset: CocoDataset, tmp_path: Path, library: Any) -> None:
    paths = [dataset.path(index) for index in range(len(dataset))]
    paths[4].unlink()
    with pytest.raises(ImageError, match=r"4\.png: cannot read the image"):
        run_fake(RedBackend(), paths, "SingleStream", tmp_path / "log", library)


def test_an_earlier_runs_logs_are_not_taken_for_this_ones(dataset: CocoDataset, tmp_path: Path, library: Any) -> None:
    folder = tmp_path / "log"
    folder.mkdir()
    (folder / SUMMARY).write_text("Result is : VALID")
    with pytest.raises(UserError, match="out of memory"):
        run_fake(FailingBackend(0), [dataset.path(0)], "SingleStream", folder, library)
    assert not (folder / SUMMARY).exists()


def test_an_error_of_ours_is_no_one_line_message(dataset: CocoDataset, tmp_path: Path, library: Any) -> None:
    backend = RedBackend()
    backend.infer = lambda *_, **__: 1 / 0  # type: ignore[method-assign,assignment]
    with pytest.raises(ZeroDivisionError):
        run_fake(backend, [dataset.path(0)], "Offline", tmp_path / "log", library)


# The command.


def test_without_loadgen(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlperf_loadgen", None)
    with pytest.raises(LoadgenError, match=r"pip install 'atss-toolkit\[loadgen\]'"):
        main([str(model), "--scenario", "Offline", "--images", str(tmp_path), "-o", str(tmp_path / "log")])


def test_what_cannot_work_is_known_before_anything_runs(
    dataset: CocoDataset, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, library: Any
) -> None:
    monkeypatch.setattr(command, "run_loadgen", lambda *_: pytest.fail("worked for nothing"))
    base = [str(model), "--scenario", "Offline", "--backend", "cpu", "--threads", "1", "-o", str(tmp_path / "log")]
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no image or video in this folder"):
        main([*base, "--images", str(tmp_path / "empty")])
    with pytest.raises(UserError, match="batch 17, but the graph was exported for 1 to 16"):
        main([*base, "--images", str(dataset.root), "--batch", "17"])
    with pytest.raises(UserError, match="cannot write"):
        main([*base[:-1], str(model), "--images", str(dataset.root)])
    content = json.loads(dataset.json_path.read_text())
    content["categories"] = [{"id": 7, "name": "blue"}, {"id": 9, "name": "green"}]
    dataset.json_path.write_text(json.dumps(content))
    with pytest.raises(UserError, match="no category there is a class of the model"):
        main([*base, "--images", str(dataset.root), "--annotations", str(dataset.json_path), "--accuracy"])


@pytest.mark.parametrize(
    "more", ["", "--scenario Offlin", "--accuracy", "--seconds 0", "--batch 0", "--qps 0", "--official --seconds 1"]
)
def test_wrong_usage(more: str, capsys: pytest.CaptureFixture) -> None:
    base = [] if not more else ["--scenario", "Offline"]
    with pytest.raises(SystemExit) as caught:
        main(["x.onnx", "--images", "y", "-o", "z", *base, *more.split()])
    assert caught.value.code == 2
    assert "error: " in capsys.readouterr().err


def test_bad_input_from_the_command_line_is_one_line(dataset: CocoDataset, repository: Path, tmp_path: Path) -> None:
    pytest.importorskip("mlperf_loadgen", reason="extra `loadgen`")
    foreign = str(write_red_onnx(tmp_path / "foreign.onnx", manifest=None))
    base = ["--scenario", "Offline", "--images", str(dataset.root), "-o", str(tmp_path / "log")]
    for options in (["none.onnx"], [foreign, "--backend", "cpu"]):
        done = subprocess.run(
            [sys.executable, "-m", "runtime.loadgen", *options, *base],
            cwd=repository,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 2
        assert done.stderr.startswith("error: ")
        assert done.stderr.count("\n") == 1


def test_an_interrupt_ends_a_run_at_once(dataset: CocoDataset, model: Path, repository: Path, tmp_path: Path) -> None:
    pytest.importorskip("mlperf_loadgen", reason="extra `loadgen`")
    options = [
        "--images",
        str(dataset.root),
        "-o",
        str(tmp_path / "log"),
        "--backend",
        "cpu",
        "--seconds",
        "60",
        "--batch",
        "1",
    ]
    with subprocess.Popen(
        [sys.executable, "-m", "runtime.loadgen", str(model), "--scenario", "Server", "--qps", "1", *options],
        cwd=repository,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert any(line.startswith("Server: about") for line in process.stdout)
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
        assert process.wait(5) == -signal.SIGINT
