"""What a resumed run says: where it goes on, what differs, and which options it lacks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from train.config import Config, Data
from train.trainer.loop import LAST, train_detector

from .test_loop import with_validation
from .test_resume import refusal, run_interrupted

Make = Callable[..., Config]


def with_data(settings: Config, **changes: str) -> Config:
    return replace(settings, data=replace(settings.data, **changes))


def test_it_says_where_it_goes_on(small_config: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = small_config()
    run_interrupted(settings, tmp_path / "run", 4)
    said = capsys.readouterr().out
    assert "resumed" not in said
    assert "nothing left" not in said
    train_detector(settings, tmp_path / "run", resume=True)
    said = capsys.readouterr().out
    assert "resumed at step 3 of 6\n" in said
    assert "other settings" not in said
    train_detector(settings, tmp_path / "run", resume=True)
    said = capsys.readouterr().out
    assert "nothing left to do: 6 of 6 steps are done" in said
    assert "resumed" not in said
    train_detector(small_config(steps=2), tmp_path / "run", resume=True)
    assert "nothing left to do: 6 of 2 steps are done" in capsys.readouterr().out
    train_detector(small_config(steps=7, learning_rate=1e-4), tmp_path / "run", resume=True)
    said = capsys.readouterr().out
    assert "resumed at step 6 of 7\n" in said
    rate = settings.schedule.learning_rate
    changes = f"--schedule.steps 6 is now 7, --schedule.learning-rate {rate} is now 0.0001\n"
    assert f"note: other settings than before: {changes}" in said
    validated = with_validation(small_config(steps=7, learning_rate=1e-4))
    train_detector(validated, tmp_path / "run", resume=True)
    assert f"before: --data.val-json '' is now {validated.data.val_json}, --data.val-images" in capsys.readouterr().out


def test_an_option_that_is_missing_is_named(small_config: Make, tmp_path: Path) -> None:
    settings = with_validation(small_config())
    for name in ("train", "val"):
        for given, missing in (("json", "images"), ("images", "json")):
            message = refusal(with_data(settings, **{f"{name}_{missing}": ""}), tmp_path / "run", resume=False)
            assert f"--data.{name}-{given} {getattr(settings.data, f'{name}_{given}')} needs" in message
            assert f"needs --data.{name}-{missing} (" in message
    assert not (tmp_path / "run").exists()


def test_a_resumed_run_without_its_data(small_config: Make, tmp_path: Path) -> None:
    settings = with_validation(small_config())
    run_interrupted(settings, tmp_path / "run", 4)
    before = (tmp_path / "run" / LAST).read_bytes()
    message = refusal(replace(settings, data=Data()), tmp_path / "run")
    data = settings.data
    assert "--resume needs all options that the run was started with" in message
    for option, value in (("train-json", data.train_json), ("val-images", data.val_images)):
        assert f"--data.{option} {value}" in message
    assert "--data.train-json and --data.train-images" in refusal(replace(settings, data=Data()), tmp_path / "new")
    assert "to the options of that run" in refusal(settings, tmp_path / "run", resume=False)
    assert (tmp_path / "run" / LAST).read_bytes() == before
