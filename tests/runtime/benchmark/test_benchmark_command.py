"""`python -m runtime.benchmark` as a command."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import pytest

from runtime.backends import BackendError
from runtime.benchmark import __main__ as command
from runtime.benchmark import run as benchmark_run
from runtime.benchmark.__main__ import main
from runtime.benchmark.rounds import Measured
from runtime.benchmark.text import caveats
from runtime.errors import UserError
from runtime.machine import conditions
from runtime.manifest import InputShapes
from runtime.stopwatch import STAGES

from ...support.fakes import manifest_with, write_images, write_red_onnx

QUICK = ["--batch", "1", "--rounds", "1", "--threads", "1", "--backend", "cpu"]
SIZES = [(60, 80)] * 3 + [(80, 60)] * 2


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_images(tmp_path / "images", SIZES)


def test_command(folder: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    pytest.importorskip("matplotlib", reason="draws the plot")
    out, drawn = tmp_path / "new" / "b.json", tmp_path / "new" / "b.png"
    options = [
        *(
            "--images",
            folder,
            "--batch",
            1,
            2,
            "--rounds",
            2,
            "--threads",
            1,
            "--backend",
            "cpu",
            "--json",
            out,
            "--plot",
            drawn,
            "--pair",
        ),
    ]
    assert main([str(model), str(model), *map(str, options)]) == 0
    report = json.loads(out.read_text())
    assert set(report) == {
        *("format", "run", "machine", "artifacts", "images", "settings", "figures", "memory", "pairs", "gpu"),
    }
    assert report["run"]["command"].startswith(f"python -m runtime.benchmark {model}")
    assert report["run"]["date"].endswith("+00:00")
    machine = report["machine"]
    assert machine["cpu"]
    assert machine["usable_processors"] >= 1
    assert {"numpy", "opencv-python-headless", "onnxruntime"} <= set(machine["libraries"])
    assert machine["load_average"] >= 0
    assert 0 <= machine["busy_share"] <= 1
    first, second = report["artifacts"]
    assert first == second
    assert (first["precision"], first["recipe"], len(first["sha256"])) == ("fp32", "fake", 64)
    assert first["backend"].startswith("ONNX Runtime")
    assert (first["preprocess"]["short_side"], first["inputs"]["batch_max"]) == (64, 16)
    assert report["settings"] == {"batches": [1, 2], "rounds": 2, "warmup_rounds": 1, "alternating": True}
    assert (report["images"]["source"], report["images"]["count"]) == (str(folder), 5)
    assert [(row["artifact"], row["batch"]) for row in report["figures"]] == [
        (str(model), 1), (f"{model} #2", 1), (str(model), 2), (f"{model} #2", 2),
    ]  # fmt: skip
    for row in report["figures"]:
        assert set(row["stage_ms"]) == {*STAGES, "rest", "total"}
        assert set(row["stage_ms"]["infer"]) == {
            *("count", "mean", "least", "p25", "p50", "p75", "p90", "p99", "most"),
        }
        assert row["pipeline_images_per_second"]["count"] == 2
    assert [pair["artifact"] for pair in report["pairs"]] == [f"{model} #2"] * 2
    assert report["memory"][0]["peak_mb"] > 10
    assert cv2.imread(str(drawn)).shape[1] > 600
    printed = capsys.readouterr().out
    for text in (machine["cpu"], "5 (3 of 80×60, 2 of 60×80)", first["sha256"][:16], "copy_in", "pipeline", "times as"):
        assert text in printed


def test_generated_images_are_said_to_be(model: Path, capsys: pytest.CaptureFixture) -> None:
    assert main([str(model), *QUICK, "--num-images", "4"]) == 0
    printed = capsys.readouterr()
    assert "generated: smooth noise" in printed.out
    assert "warning: the images were generated" in printed.err


def test_memory_is_each_artifacts_own(folder: Path, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "b.json"
    options = ["--images", str(folder), *QUICK, "--json", str(out)]
    assert main([str(model), str(model), *options]) == 0
    report = json.loads(out.read_text())
    assert [row["artifacts"] for row in report["memory"]] == [[str(model)], [f"{model} #2"]]
    assert report["pairs"] == []
    assert all(0 < row["before_mb"] <= row["peak_mb"] for row in report["memory"])


@pytest.mark.parametrize(
    ("before", "peak", "expected"), [(100.0, 99.9, 100.0), (100.0, 130.0, 130.0), (None, 5.0, 5.0), (5.0, None, None)]
)
def test_a_peak_is_no_less_than_what_came_before(
    folder: Path,
    model: Path,
    monkeypatch: pytest.MonkeyPatch,
    before: float | None,
    peak: float | None,
    expected: float | None,
) -> None:
    reports = []
    monkeypatch.setattr(command, "report_as_text", lambda report: reports.append(report) or "")
    monkeypatch.setattr(benchmark_run, "memory_mb", lambda: before)
    monkeypatch.setattr(benchmark_run, "peak_memory_mb", lambda: peak)
    assert main([str(model), "--images", str(folder), *QUICK]) == 0
    (memory,) = reports[0].memory
    assert (memory.before_mb, memory.peak_mb) == (before, expected)


def test_doubts_are_named(folder: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reports = []
    monkeypatch.setattr(command, "report_as_text", lambda report: reports.append(report) or "")
    ticks = iter([(100, 1000), (130, 1100)])
    monkeypatch.setattr(conditions, "processor_ticks", lambda: next(ticks))
    assert (
        main(
            [str(model), "--images", str(folder), "--batch", "1", "--rounds", "2", "--threads", "1", "--backend", "cpu"]
        )
        == 0
    )
    assert any("busy before the run (70% of its processors' time)" in line for line in caveats(reports[0]))
    noisy = reports[0].figures[0].pipeline_images_per_second
    object.__setattr__(noisy, "most", 2 * noisy.p50)
    assert any("pipeline: rounds differ by" in line for line in caveats(reports[0]))


def test_a_full_disk_does_not_cost_the_figures(
    folder: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def full(*_: object) -> None:
        raise UserError("cannot write: No space left on device")

    monkeypatch.setattr(command, "atomic_write", full)
    options = ["--images", str(folder), *QUICK, "--json", str(tmp_path / "b")]
    with pytest.raises(UserError, match="No space left"):
        main([str(model), *options])
    assert "pipeline" in capsys.readouterr().out


def test_what_cannot_work_is_known_before_anything_runs(
    folder: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(benchmark_run, "measure", lambda *_, **__: pytest.fail("worked for nothing"))
    small = write_red_onnx(tmp_path / "small.onnx", manifest_with(inputs=InputShapes(1, 4, 64, 64, 64, 64)))
    fixed = write_red_onnx(tmp_path / "fixed.onnx", manifest_with(inputs=InputShapes(1, 1, 32, 512, 32, 512)))
    for second, message in (
        (small, "exported for at most 64×64"),
        (fixed, "batch 8, but the graph was exported for 1;"),
    ):
        with pytest.raises(BackendError, match=message):
            main([str(model), str(second), "--images", str(folder), "--threads", "1", "--backend", "cpu"])
    with pytest.raises(UserError, match="cannot write"):
        main([str(model), "--images", str(folder), "--json", str(model / "b.json")])
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UserError, match="--plot needs matplotlib"):
        main([str(model), "--images", str(folder), "--plot", str(tmp_path / "b.png")])


def test_a_model_that_is_replaced_meanwhile(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = (write_red_onnx(tmp_path / f"{name}.onnx") for name in ("a", "b"))
    run = benchmark_run.measure

    def replacing(*arguments: Any, **keywords: Any) -> list[Measured]:
        write_red_onnx(second, manifest_with(recipe="another"))
        return run(*arguments, **keywords)

    monkeypatch.setattr(benchmark_run, "measure", replacing)
    with pytest.raises(BackendError, match=r"b\.onnx: the file was replaced during the benchmark"):
        main([str(first), str(second), "--images", str(folder), *QUICK])


@pytest.mark.parametrize(
    "more", [["--pair"], ["--batch", "0"], ["--rounds", "0"], ["--num-images", "0"], ["--warmup", "-1"], ["--batch"]]
)
def test_wrong_usage(model: Path, more: list[str], capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as caught:
        main([str(model), *more])
    assert caught.value.code == 2
    assert "error: " in capsys.readouterr().err


def test_bad_input_from_the_command_line_is_one_line(folder: Path, repository: Path, tmp_path: Path) -> None:
    foreign = str(write_red_onnx(tmp_path / "foreign.onnx", manifest=None))
    for options in (["none.onnx"], [foreign], [foreign, "--images", str(tmp_path / "nowhere")], [f"{foreign}@cuda"]):
        done = subprocess.run(
            [sys.executable, "-m", "runtime.benchmark", *options, "--num-images", "1"],
            cwd=repository,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 2
        assert done.stderr.startswith("error: ")
        assert done.stderr.count("\n") == 1
