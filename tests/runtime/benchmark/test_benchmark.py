from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtime.backends import BackendError
from runtime.backends.options import BackendOptions
from runtime.benchmark import run as benchmark_run
from runtime.benchmark.__main__ import main
from runtime.benchmark.images import ImageFiles, find_images, generate_images
from runtime.benchmark.report import Settings, figures, pairs
from runtime.benchmark.rounds import measure
from runtime.benchmark.run import run_benchmark
from runtime.benchmark.stages import plan_work, run_batch
from runtime.benchmark.text import caveats, report_as_text
from runtime.detections import RawOutputs
from runtime.detector import Detector
from runtime.errors import UserError
from runtime.manifest import InputShapes
from runtime.model_spec import ModelSpec
from runtime.stopwatch import STAGES, Stopwatch

from ...support.fakes import RedBackend, manifest_with, write_images
from ...support.nvml import FakeGpu, FakeNvml

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
        self, images: np.ndarray, image_sizes: np.ndarray, stopwatch: Stopwatch | None = None, **options: Any
    ) -> RawOutputs:
        for stage, seconds in self.seconds.items():
            self.clock.now += seconds * (1 + self.slower * len(self.batches))
            if stopwatch is not None and stage != "hidden":
                stopwatch.add(stage, seconds * (1 + self.slower * len(self.batches)))  # type: ignore[arg-type]
        return super().infer(images, image_sizes, **options)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_images(tmp_path / "images", SIZES)


@pytest.fixture
def images(folder: Path) -> ImageFiles:
    return find_images([folder], 100)


def test_images_of_a_folder(folder: Path) -> None:
    found = find_images([folder], 4)
    assert list(found.sizes_hw.values()) == SIZES[:4]
    described = found.summary()
    assert (described.count, described.sizes, described.skipped) == (4, {"80×60": 3, "60×80": 1}, 0)
    assert described.mean_bytes == sum(path.stat().st_size for path in found.sizes_hw) / 4


def test_an_image_that_cannot_be_read_is_named(folder: Path) -> None:
    (folder / "0.png").write_bytes(b"")
    found = find_images([folder], 100)
    assert len(found.sizes_hw) == 4
    assert [line.split(": ")[0] for line in found.skipped] == [str(folder / "0.png")]


def test_no_images(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no image or video in this folder"):
        find_images([tmp_path / "empty"], 3)
    with pytest.raises(UserError, match=r"none of the 1 images could be read; the first: .*No such file"):
        find_images([tmp_path / "missing"], 3)
    (tmp_path / "empty" / "film.mp4").write_bytes(b"x")
    with pytest.raises(UserError, match="no image there, expected image files"):
        find_images([tmp_path / "empty"], 3)


def test_generated_images_are_the_same_again(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    first, second = generate_images(tmp_path / "a", 12), generate_images(tmp_path / "b", 12)
    assert first.summary() == second.summary()
    assert first.is_generated
    assert [path.read_bytes() for path in first.sizes_hw] == [path.read_bytes() for path in second.sizes_hw]
    assert find_images([tmp_path / "a"], 99).sizes_hw == first.sizes_hw  # they are what they claim to be


@pytest.mark.parametrize("batch", [1, 2, 4])
def test_batches_are_full_and_share_a_canvas(images: ImageFiles, batch: int) -> None:
    detector = Detector(RedBackend())
    works = plan_work(detector, images.sizes_hw, batch)
    assert {len(work.files) for work in works} == {batch}
    assert {path for work in works for path in work.files} == set(images.sizes_hw)
    for work in works:
        assert {detector.canvas_hw(images.sizes_hw[path]) for path in work.files} == {work.canvas_hw}


@pytest.mark.parametrize("batch", [1, 5])
def test_a_batch_that_the_graph_does_not_take(images: ImageFiles, batch: int) -> None:
    detector = Detector(RedBackend(manifest_with(inputs=InputShapes(2, 4, 32, 512, 32, 512))))
    with pytest.raises(BackendError, match=f"batch {batch}, but the graph was exported for 2 to 4"):
        plan_work(detector, images.sizes_hw, batch)


def test_images_that_the_graph_does_not_take(images: ImageFiles) -> None:
    detector = Detector(RedBackend(manifest_with(inputs=InputShapes(1, 4, 64, 64, 64, 64))))
    with pytest.raises(BackendError, match="exported for at most 64×64"):
        plan_work(detector, images.sizes_hw, 1)


def test_stages_are_those_of_the_clock(images: ImageFiles) -> None:
    clock = Clock()
    spent = {"copy_in": 0.25, "infer": 2.0, "copy_out": 0.5, "hidden": 0.125}
    detector = Detector(TimedBackend(clock, spent))
    run = run_batch(detector, plan_work(detector, images.sizes_hw, 2)[0], clock)
    assert run.seconds == {"decode": 0, "preprocess": 0, "copy_in": 0.25, "infer": 2, "copy_out": 0.5, "postprocess": 0}
    assert run.wall == 2.875
    assert run.rest == 0.125
    assert run.detections == 2 * 2  # per image the rectangle, and the other class
    assert run.reruns == 2


def test_stages_of_a_real_run_add_up(images: ImageFiles, model: Path) -> None:
    with Detector(model, backend="cpu", threads=1) as detector:
        works = plan_work(detector, images.sizes_hw, 2)
        runs = [run_batch(detector, work) for _ in range(20) for work in works]
    for run in runs:
        assert tuple(run.seconds) == STAGES
        assert all(run.seconds[stage] > 0 for stage in ("decode", "preprocess", "infer", "postprocess"))
        assert run.rest > 0
        assert sum(run.seconds.values()) + run.rest == pytest.approx(run.wall)
    assert sum(run.rest for run in runs) < 0.5 * sum(run.wall for run in runs)  # checks only; the graph is tiny
    assert sum(run.detections for run in runs) == sum(2 for _ in runs)


def test_figures_by_hand(images: ImageFiles) -> None:
    clock = Clock()
    detector = Detector(TimedBackend(clock, {"infer": 2.0}))
    (measured,) = measure({"a": detector}, images, batch=2, rounds=3, warmup=1, clock=clock)
    found = figures(measured, len(SIZES))
    assert found.canvases == {"96×64": 2, "64×96": 1}
    assert found.stage_ms["infer"].count == 3 * 3  # the warm-up isn't counted
    assert found.stage_ms["infer"].p50 == found.stage_ms["total"].p99 == pytest.approx(2000)
    assert found.stage_images_per_second == pytest.approx({"infer": 1, "total": 1})
    assert found.serial_images_per_second.p50 == pytest.approx(1)
    assert found.pipeline_images_per_second.p50 == pytest.approx(5 / 6)  # 2 + 1 + 2 images, 2 s each batch
    assert found.pipeline_round_seconds == pytest.approx([6, 6, 6])
    assert (found.detections_per_image, found.nms_reruns) == (2, 18)


def test_a_pair_of_which_one_is_twice_as_slow(images: ImageFiles) -> None:
    clock = Clock()
    slow, fast = TimedBackend(clock, {"infer": 2.0, "hidden": 1.0}), TimedBackend(clock, {"infer": 1.0})
    (pair,) = pairs(measure({"a": Detector(slow), "b": Detector(fast)}, images, 2, rounds=4, clock=clock))
    assert (pair.base, pair.artifact, pair.infer.count) == ("a", "b", 4)
    assert (pair.infer.least, pair.infer.p50, pair.infer.most) == pytest.approx((2, 2, 2))
    assert pair.serial.p50 == pair.pipeline.p50 == pytest.approx(3)


def test_a_pair_on_a_machine_that_slows_down_alternates(images: ImageFiles) -> None:
    """One after the other the second would look slower than it is; in neighbouring rounds it hardly does."""
    clock = Clock()
    slow, fast = TimedBackend(clock, {"infer": 2.0}, slower=0.02), TimedBackend(clock, {"infer": 1.0}, slower=0.02)
    order: list[str] = []
    for name, backend in (("slow", slow), ("fast", fast)):
        backend.infer = _noting(order, name, backend.infer)  # type: ignore[method-assign]
    measured = measure({"a": Detector(slow), "b": Detector(fast)}, images, 1, rounds=6, clock=clock)
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


def test_a_benchmark_without_the_command(images: ImageFiles, model: Path) -> None:
    settings = Settings((2,), rounds=1, warmup_rounds=0, alternating=False)
    report = run_benchmark([ModelSpec.parse(str(model))], images, settings, BackendOptions("cpu", threads=1))
    assert report.settings == settings
    assert report.run.command == ""
    assert report.artifacts[0].backend.startswith("ONNX Runtime ")
    assert [found.batch for found in report.figures] == [2]
    assert report.figures[0].stage_ms["infer"].count == 3


@pytest.mark.parametrize("driver", ["580.65.06", None])
def test_a_gpu_that_is_not_watched_is_told_of_where_there_is_a_driver(
    images: ImageFiles,
    model: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    driver: str | None,
) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    monkeypatch.setattr(benchmark_run, "kernel_driver", lambda: driver)
    settings = Settings((1,), rounds=1, warmup_rounds=0, alternating=False)
    report = run_benchmark([ModelSpec.parse(str(model))], images, settings, BackendOptions("cpu", threads=1))
    assert report.gpu is None
    assert len(caplog.messages) == (driver is not None)
    assert all("the GPU was not watched: nvidia-ml-py cannot be imported" in line for line in caplog.messages)
    assert all(line.endswith("pip install nvidia-ml-py") for line in caplog.messages)


def test_the_gpu_s_readings_are_in_the_report(images: ImageFiles, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml([FakeGpu(reasons=(0x04,))]))
    settings = Settings((1,), rounds=1, warmup_rounds=0, alternating=False)
    report = run_benchmark([ModelSpec.parse(str(model))], images, settings, BackendOptions("cpu", threads=1))
    assert report.gpu is not None
    assert (report.gpu.name, report.gpu.throttling) == ("NVIDIA L4", {"power cap": 1})
    assert "the GPU was throttled: power cap in 100% of the samples" in caveats(report)
    assert "GPU: NVIDIA L4, driver 580.65.06; clock 2040 to 2040 of 2040 MHz" in report_as_text(report)
