from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from runtime import benchmark as command
from runtime import conditions
from runtime.backends import BackendError
from runtime.benchmark import main, measure
from runtime.benchmark_figures import Measured, figures, pairs
from runtime.benchmark_text import warnings
from runtime.detections import RawOutputs
from runtime.detector import Detector
from runtime.errors import UserError
from runtime.manifest import InputShapes
from runtime.pictures import Pictures, find_pictures, generate_pictures
from runtime.stages import STAGES, plan_work, run_batch

from .fakes import RedBackend, manifest_with, picture, write_red_onnx

QUICK = ["--batch", "1", "--rounds", "1", "--threads", "1", "--backend", "cpu"]
SIZES = [(60, 80)] * 3 + [(80, 60)] * 2


class Clock:
    """Stands still but for what the backend adds."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class TimedBackend(RedBackend):
    """Takes so many seconds by that clock; `slower` more at each call, as on a machine that others use."""

    def __init__(self, clock: Clock, seconds: dict[str, float], slower: float = 0.0) -> None:
        super().__init__()
        self.clock, self.seconds, self.slower = clock, seconds, slower

    def infer(
        self,
        images: np.ndarray,
        image_sizes: np.ndarray,
        *,
        all_candidates: bool = False,
        times: dict[str, float] | None = None,
    ) -> RawOutputs:
        for stage, seconds in self.seconds.items():
            self.clock.now += seconds * (1 + self.slower * len(self.batches))
            if times is not None and stage != "hidden":
                times[stage] = times.get(stage, 0.0) + seconds * (1 + self.slower * len(self.batches))
        return super().infer(images, image_sizes, all_candidates=all_candidates)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for index, (height, width) in enumerate(SIZES):
        (tmp_path / "pictures").mkdir(exist_ok=True)
        image = picture(height, width, (8, 12, width - 8, height - 4))
        cv2.imwrite(str(tmp_path / "pictures" / f"{index}.png"), image[..., ::-1])
    return tmp_path / "pictures"


@pytest.fixture
def pictures(folder: Path) -> Pictures:
    return find_pictures([folder], 100)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("onnx", reason="builds the test's graph")
    pytest.importorskip("onnxruntime", reason="runs it")
    return write_red_onnx(tmp_path_factory.mktemp("onnx") / "red.onnx")


def test_pictures_of_a_folder(folder: Path) -> None:
    found = find_pictures([folder], 4)
    assert list(found.sizes_hw.values()) == SIZES[:4]
    described = found.described()
    assert (described.count, described.sizes, described.skipped) == (4, {"80×60": 3, "60×80": 1}, 0)
    assert described.mean_bytes == sum(path.stat().st_size for path in found.sizes_hw) / 4


def test_a_picture_that_cannot_be_read_is_named(folder: Path) -> None:
    (folder / "0.png").write_bytes(b"")
    found = find_pictures([folder], 100)
    assert len(found.sizes_hw) == 4
    assert [line.split(": ")[0] for line in found.skipped] == [str(folder / "0.png")]


def test_no_pictures(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no picture or video in this folder"):
        find_pictures([tmp_path / "empty"], 3)
    with pytest.raises(UserError, match=r"none of the 1 pictures could be read; the first: .*No such file"):
        find_pictures([tmp_path / "missing"], 3)
    (tmp_path / "empty" / "film.mp4").write_bytes(b"x")
    with pytest.raises(UserError, match="no picture there, expected JPEG or PNG"):
        find_pictures([tmp_path / "empty"], 3)


def test_generated_pictures_are_the_same_again(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    first, second = generate_pictures(tmp_path / "a", 12), generate_pictures(tmp_path / "b", 12)
    assert first.described() == second.described()
    assert first.is_generated
    assert [path.read_bytes() for path in first.sizes_hw] == [path.read_bytes() for path in second.sizes_hw]
    assert find_pictures([tmp_path / "a"], 99).sizes_hw == first.sizes_hw  # they are what they claim to be


@pytest.mark.parametrize("batch", [1, 2, 4])
def test_batches_are_full_and_share_a_canvas(pictures: Pictures, batch: int) -> None:
    detector = Detector(RedBackend())
    works = plan_work(detector, pictures.sizes_hw, batch)
    assert {len(work.files) for work in works} == {batch}
    assert {path for work in works for path in work.files} == set(pictures.sizes_hw)
    for work in works:
        assert {detector.canvas_hw(pictures.sizes_hw[path]) for path in work.files} == {work.canvas_hw}


@pytest.mark.parametrize("batch", [1, 5])
def test_a_batch_that_the_graph_does_not_take(pictures: Pictures, batch: int) -> None:
    detector = Detector(RedBackend(manifest_with(inputs=InputShapes(2, 4, 32, 512, 32, 512))))
    with pytest.raises(BackendError, match=f"batch {batch}, but the graph was exported for 2 to 4"):
        plan_work(detector, pictures.sizes_hw, batch)


def test_pictures_that_the_graph_does_not_take(pictures: Pictures) -> None:
    detector = Detector(RedBackend(manifest_with(inputs=InputShapes(1, 4, 64, 64, 64, 64))))
    with pytest.raises(BackendError, match="exported for at most 64×64"):
        plan_work(detector, pictures.sizes_hw, 1)


def test_stages_are_those_of_the_clock(pictures: Pictures) -> None:
    clock = Clock()
    spent = {"copy_in": 0.25, "infer": 2.0, "copy_out": 0.5, "hidden": 0.125}
    detector = Detector(TimedBackend(clock, spent))
    run = run_batch(detector, plan_work(detector, pictures.sizes_hw, 2)[0], clock)
    assert run.seconds == {"decode": 0, "preprocess": 0, "copy_in": 0.25, "infer": 2, "copy_out": 0.5, "postprocess": 0}
    assert run.wall == 2.875
    assert run.rest == 0.125
    assert run.detections == 2 * 2  # per picture the rectangle, and the other class
    assert run.reruns == 2


def test_stages_of_a_real_run_add_up(pictures: Pictures, model: Path) -> None:
    with Detector(model, backend="cpu", threads=1) as detector:
        works = plan_work(detector, pictures.sizes_hw, 2)
        runs = [run_batch(detector, work) for _ in range(20) for work in works]
    for run in runs:
        assert tuple(run.seconds) == STAGES
        assert all(run.seconds[stage] > 0 for stage in ("decode", "preprocess", "infer", "postprocess"))
        assert run.rest > 0
        assert sum(run.seconds.values()) + run.rest == pytest.approx(run.wall)
    assert sum(run.rest for run in runs) < 0.5 * sum(run.wall for run in runs)  # checks only; the graph is tiny
    assert sum(run.detections for run in runs) == sum(2 for _ in runs)


def test_figures_by_hand(pictures: Pictures) -> None:
    clock = Clock()
    detector = Detector(TimedBackend(clock, {"infer": 2.0}))
    (measured,) = measure({"a": detector}, pictures, batch=2, rounds=3, warmup=1, clock=clock)
    found = figures(measured, len(SIZES))
    assert found.canvases == {"96×64": 2, "64×96": 1}
    assert found.stage_ms["infer"].count == 3 * 3  # the warm-up isn't counted
    assert found.stage_ms["infer"].p50 == found.stage_ms["total"].p99 == pytest.approx(2000)
    assert found.stage_images_per_second == pytest.approx({"infer": 1, "total": 1})
    assert found.serial_images_per_second.p50 == pytest.approx(1)
    assert found.pipeline_images_per_second.p50 == pytest.approx(5 / 6)  # 2 + 1 + 2 pictures, 2 s each batch
    assert found.pipeline_round_seconds == pytest.approx([6, 6, 6])
    assert (found.detections_per_image, found.nms_reruns) == (2, 18)


def test_a_pair_of_which_one_is_twice_as_slow(pictures: Pictures) -> None:
    clock = Clock()
    slow, fast = TimedBackend(clock, {"infer": 2.0, "hidden": 1.0}), TimedBackend(clock, {"infer": 1.0})
    (pair,) = pairs(measure({"a": Detector(slow), "b": Detector(fast)}, pictures, 2, rounds=4, clock=clock))
    assert (pair.base, pair.artifact, pair.infer.count) == ("a", "b", 4)
    assert (pair.infer.least, pair.infer.p50, pair.infer.most) == pytest.approx((2, 2, 2))
    assert pair.serial.p50 == pair.pipeline.p50 == pytest.approx(3)


def test_a_pair_on_a_machine_that_slows_down_alternates(pictures: Pictures) -> None:
    """One after the other the second would look slower than it is; in neighbouring rounds it hardly does."""
    clock = Clock()
    slow, fast = TimedBackend(clock, {"infer": 2.0}, slower=0.02), TimedBackend(clock, {"infer": 1.0}, slower=0.02)
    order: list[str] = []
    for name, backend in (("slow", slow), ("fast", fast)):
        backend.infer = _noting(order, name, backend.infer)  # type: ignore[method-assign]
    measured = measure({"a": Detector(slow), "b": Detector(fast)}, pictures, 1, rounds=6, clock=clock)
    (pair,) = pairs(measured)
    assert pair.infer.p50 == pytest.approx(2)
    assert figures(measured[0], 5).stage_ms["infer"].spread > 0.3
    assert order[:20] == (["slow"] * 5 + ["fast"] * 5) * 2


def _noting(order: list[str], name: str, infer):  # type: ignore[no-untyped-def]
    def noted(*arguments, **keywords):  # type: ignore[no-untyped-def]
        order.append(name)
        return infer(*arguments, **keywords)

    return noted


def test_two_backends_of_one_model(folder: Path, model: Path, tmp_path: Path) -> None:
    pytest.importorskip("openvino", reason="runs it too")
    out = tmp_path / "b.json"
    options = ["--images", str(folder), *QUICK, "--pair", "--json", str(out)]
    assert main([f"{model}@cpu", f"{model}@openvino", *options]) == 0
    report = json.loads(out.read_text())
    first, second = (artifact["backend"] for artifact in report["artifacts"])
    assert "ONNX Runtime" in first
    assert "OpenVINO" in second
    assert report["pairs"][0]["artifact"] == f"{model}@openvino"
    assert report["figures"][0]["detections_per_image"] == report["figures"][1]["detections_per_image"] == 1


# The command.


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
        *("format", "run", "machine", "artifacts", "pictures", "settings", "figures", "memory", "pairs", "gpu"),
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
    assert (report["pictures"]["source"], report["pictures"]["count"]) == (str(folder), 5)
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


def test_generated_pictures_are_said_to_be(model: Path, capsys: pytest.CaptureFixture) -> None:
    assert main([str(model), *QUICK, "--pictures", "4"]) == 0
    printed = capsys.readouterr()
    assert "generated: smooth noise" in printed.out
    assert "warning: the pictures were generated" in printed.err


def test_memory_is_each_artifacts_own(folder: Path, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "b.json"
    options = [
        "--images",
        str(folder),
        "--batch",
        "1",
        "--rounds",
        "1",
        "--threads",
        "1",
        "--backend",
        "cpu",
        "--json",
        str(out),
    ]
    assert main([str(model), str(model), *options]) == 0
    report = json.loads(out.read_text())
    assert [row["artifacts"] for row in report["memory"]] == [[str(model)], [f"{model} #2"]]
    assert report["pairs"] == []
    assert all(0 < row["before_mb"] <= row["peak_mb"] for row in report["memory"])


def test_doubts_are_named(folder: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reports = []
    monkeypatch.setattr(command, "report_as_text", lambda report: reports.append(report) or "")
    ticks = iter([(100, 1000), (130, 1100)])
    monkeypatch.setattr(conditions, "_processor_ticks", lambda: next(ticks))
    assert (
        main(
            [str(model), "--images", str(folder), "--batch", "1", "--rounds", "2", "--threads", "1", "--backend", "cpu"]
        )
        == 0
    )
    assert any("busy before the run (70% of its processors' time)" in line for line in warnings(reports[0]))
    noisy = reports[0].figures[0].pipeline_images_per_second
    object.__setattr__(noisy, "most", 2 * noisy.p50)
    assert any("pipeline: rounds differ by" in line for line in warnings(reports[0]))


def test_a_full_disk_does_not_cost_the_figures(
    folder: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def full(*_: object) -> None:
        raise UserError("cannot write: No space left on device")

    monkeypatch.setattr(command, "atomic_write", full)
    options = [
        "--images",
        str(folder),
        "--batch",
        "1",
        "--rounds",
        "1",
        "--threads",
        "1",
        "--json",
        str(tmp_path / "b"),
    ]
    with pytest.raises(UserError, match="No space left"):
        main([str(model), *options])
    assert "pipeline" in capsys.readouterr().out


def test_what_cannot_work_is_known_before_anything_runs(
    folder: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "measure", lambda *_, **__: pytest.fail("worked for nothing"))
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
    run = command.measure

    def replacing(*arguments: Any, **keywords: Any) -> list[Measured]:
        write_red_onnx(second, manifest_with(recipe="another"))
        return run(*arguments, **keywords)

    monkeypatch.setattr(command, "measure", replacing)
    with pytest.raises(BackendError, match=r"b\.onnx: the file was replaced during the benchmark"):
        main([str(first), str(second), "--images", str(folder), *QUICK])


@pytest.mark.parametrize(
    "more", [["--pair"], ["--batch", "0"], ["--rounds", "0"], ["--pictures", "0"], ["--warmup", "-1"], ["--batch"]]
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
            [sys.executable, "-m", "runtime.benchmark", *options, "--pictures", "1"],
            cwd=repository,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 2
        assert done.stderr.startswith("error: ")
        assert done.stderr.count("\n") == 1
