"""The files that the GPU report's steps run: how they are made again after a step was killed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu import model_files, onnxruntime_cuda
from benchmarks.gpu.model_files import REHEARSAL, Files, small_detector
from benchmarks.gpu.ort_speed import Setting
from benchmarks.gpu.step import Record
from runtime.errors import UserError
from train.api import TrainingResult, train
from train.checkpoint import read_checkpoint


def test_without_the_small_files_the_large_ones_are_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> Files:
        raise UserError("no small files")

    monkeypatch.setattr(onnxruntime_cuda, "small_files", fails)
    monkeypatch.setattr(onnxruntime_cuda, "run_command", lambda arguments, limit_s: "{}")
    monkeypatch.setattr(onnxruntime_cuda, "large_files", lambda *_: Files({"fp32 cpu": tmp_path / "large.onnx"}, {}))
    done: list[str] = []
    for part in ("speed", "pipeline", "benchmark", "profile", "on_device_images", "cuda_graphs"):
        monkeypatch.setattr(onnxruntime_cuda, part, lambda *_, part=part: done.append(part))
    record = Record(tmp_path / "step.json", minutes=5, rehearsal=True)
    onnxruntime_cuda.run(record, Setting(tmp_path, REHEARSAL, "cpu", "cpu", (2,), 1))
    speeds = ["speed", "speed"]
    assert done == ["speed", "pipeline", "benchmark", "profile", "on_device_images", *speeds, "cuda_graphs"]
    assert list(record.failures) == ["accuracy", "making the small files"]
    assert "small profile" in record.not_run


def test_a_training_that_was_killed_is_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Killed(BaseException):
        pass

    def killed_after_a_step(recipe: str, out: Path, overrides: dict[str, Any], **options: Any) -> TrainingResult:
        train(recipe, out=out, overrides={**overrides, "schedule.steps": 1}, **options)
        raise Killed

    monkeypatch.setattr(model_files, "train", killed_after_a_step)
    with pytest.raises(Killed):
        small_detector(tmp_path, REHEARSAL)
    monkeypatch.undo()
    assert read_checkpoint(tmp_path / "training" / "last.pt").step == 1
    assert read_checkpoint(small_detector(tmp_path, REHEARSAL)).step == REHEARSAL.steps
