"""Early stopping: when a run ends, what it leaves behind, and how it goes on."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from runtime.interrupts import Interrupted
from runtime.training_log import LOG, read_log
from train.checkpoint import read_checkpoint, save_checkpoint
from train.config import Config
from train.trainer import loop
from train.trainer.loop import BEST, LAST, train_detector
from train.trainer.stopping import BestAp, idle_patience, measured_ap

from .test_loop import lines, refusal, with_run, with_validation
from .test_resume import losses, run_interrupted, same_weights

Make = Callable[..., Config]
APS = [0.1, 0.3, 0.2, 0.3, 0.25, 0.4, 0.1, 0.1, 0.1, 0.1]  # of step 1, 2, …


def stopping(make: Make, patience: int, **run: Any) -> Config:
    settings = with_validation(make(steps=10, patience=patience, ema=0.9))
    return with_run(settings, **{"evaluate_every": 1, "evaluate_limit": 0, "checkpoint_every": 4, **run})


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> Callable[[list[float]], list[int]]:
    """Makes evaluations give these APs, step by step; returns the list that counts them."""

    def script(aps: list[float]) -> list[int]:
        count: list[int] = []

        def evaluate(*_: Any) -> dict[str, float]:
            count.append(len(count))
            return {"AP": aps[len(count) - 1], "AP50": aps[len(count) - 1]}

        monkeypatch.setattr(loop, "evaluate_model", evaluate)
        return count

    return script


def test_no_evaluation_and_no_patience_end_nothing(small_config: Make) -> None:
    schedule = stopping(small_config, 2).schedule
    best = BestAp(-1.0, 0)
    assert not best.ends(5, schedule)
    assert not best.add(None)
    assert (best.ap, best.since) == (-1.0, 0), "what was not measured does not count"
    for _ in range(9):
        best.add(0.2)
    assert not best.ends(5, replace(schedule, patience=0))
    assert best.ends(5, schedule)
    assert not best.ends(10, schedule), "the last step ends the run anyway"
    assert BestAp(0.5, 1).add(0.51)
    assert not BestAp(0.5, 1).add(0.5)


def test_only_the_ap_of_the_whole_set_counts() -> None:
    assert measured_ap({"AP": 0.4}, 0) == 0.4
    assert measured_ap({"AP": 0.4}, 200) is None
    assert measured_ap({"AP": -1.0}, 0) is None


@pytest.mark.parametrize(
    ("patience", "step", "best"), [(1, 3, 2), (2, 4, 2), (3, 5, 2), (4, 10, 6), (5, 10, 6), (0, 10, 6)]
)
def test_the_run_ends_after_so_many_evaluations_without_a_better_ap(
    patience: int,
    step: int,
    best: int,
    small_config: Make,
    tmp_path: Path,
    scripted: Callable[[list[float]], list[int]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    count = scripted(APS)
    result = train_detector(stopping(small_config, patience), tmp_path / "run")
    assert len(count) == step
    assert (result.steps, result.ap, result.best_ap) == (step, APS[step - 1], APS[best - 1])
    last, kept = (read_checkpoint(tmp_path / "run" / name) for name in (LAST, BEST))
    assert (last.step, last.ap, last.best_ap, last.since_best) == (step, APS[step - 1], APS[best - 1], step - best)
    assert (kept.step, kept.ap, kept.since_best) == (best, APS[best - 1], 0)
    said = capsys.readouterr().out
    stops = [line for line in read_log(tmp_path / "run" / LOG) if line["kind"] == "stop"]
    if step == 10:
        assert "stopped early" not in said
        assert stops == []
    else:
        assert (
            f"stopped early at step {step} of 10: {patience} evaluation{'s' * (patience > 1)} without a better AP than "
            f"{100 * APS[best - 1]:.1f} (--schedule.patience {patience}); best.pt has the best weights"
        ) in said
        assert stops == [{"kind": "stop", "step": step, "best_ap": APS[best - 1], "evaluations_since": patience}]


def test_a_stopped_run_is_the_beginning_of_one_that_does_not_stop(
    small_config: Make, tmp_path: Path, scripted: Callable[[list[float]], list[int]]
) -> None:
    scripted(APS + APS)
    train_detector(stopping(small_config, 0), tmp_path / "through")
    scripted(APS)
    train_detector(stopping(small_config, 3), tmp_path / "stopped")
    assert losses(tmp_path / "stopped") == losses(tmp_path / "through")[:5]
    assert same_weights(tmp_path / "stopped" / BEST, tmp_path / "through" / BEST) == (APS.index(max(APS)) < 5)


def test_resuming_a_stopped_run_takes_no_step_until_it_has_more_patience(
    small_config: Make,
    tmp_path: Path,
    scripted: Callable[[list[float]], list[int]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    scripted(APS)
    train_detector(stopping(small_config, 0), tmp_path / "through")
    scripted(APS)
    train_detector(stopping(small_config, 2), tmp_path / "run")
    before = (tmp_path / "run" / LAST).read_bytes(), (tmp_path / "run" / LOG).read_bytes()
    count = scripted(APS)
    capsys.readouterr()
    again = train_detector(stopping(small_config, 2), tmp_path / "run", resume=True)
    assert (again.steps, again.best_ap, count) == (4, 0.3, [])
    assert "stopped early at step 4 of 10" in capsys.readouterr().out
    assert ((tmp_path / "run" / LAST).read_bytes(), (tmp_path / "run" / LOG).read_bytes()) == before
    scripted(APS[4:])
    assert train_detector(stopping(small_config, 4), tmp_path / "run", resume=True).steps == 10
    assert losses(tmp_path / "run") == losses(tmp_path / "through")
    assert same_weights(tmp_path / "run" / LAST, tmp_path / "through" / LAST)


@pytest.mark.parametrize("cut", [2, 4, 5])
def test_an_interrupted_run_counts_on(
    cut: int, small_config: Make, tmp_path: Path, scripted: Callable[[list[float]], list[int]]
) -> None:
    """Evaluations between the last checkpoint and the interruption are made again."""
    settings = stopping(small_config, 5, checkpoint_every=3)
    aps = [0.5, 0.1, 0.1, 0.1, 0.1, 0.1, 0.9]
    scripted(aps)
    run_interrupted(settings, tmp_path / "run", cut)
    begun = 3 * (cut // 3)
    scripted(aps[begun:])
    resumed = train_detector(settings, tmp_path / "run", resume=True)
    assert (resumed.steps, resumed.best_ap) == (6, 0.5)
    assert read_checkpoint(tmp_path / "run" / LAST).since_best == 5


def test_evaluations_that_measure_nothing_do_not_count(
    small_config: Make, tmp_path: Path, scripted: Callable[[list[float]], list[int]]
) -> None:
    scripted([-1.0, 0.2, -1.0, -1.0, -1.0, 0.1, -1.0, 0.1, 0.9, 0.9])
    result = train_detector(stopping(small_config, 2), tmp_path / "run")
    assert (result.steps, result.best_ap) == (8, 0.2)


def test_checkpoints_from_before_have_no_evaluation_since(small_config: Make, tmp_path: Path) -> None:
    train_detector(small_config(), tmp_path / "run")
    path = tmp_path / "run" / LAST
    content = torch.load(path, weights_only=True)
    settings = json.loads(content["config"])
    del content["since_best"], settings["schedule"]["patience"], settings["data"]["repeat_threshold"]
    for name in ("mosaic", "mosaic_scale", "mosaic_until"):
        del settings["augment"][name]
    torch.save({**content, "config": json.dumps(settings)}, path)
    old = read_checkpoint(path)
    assert old.since_best == 0
    assert (old.config.schedule.patience, old.config.augment.mosaic, old.config.data.repeat_threshold) == (0, 0.0, 0.0)
    save_checkpoint(path, old._replace(since_best=7))
    assert read_checkpoint(path).since_best == 7


def test_what_cannot_be_compared_is_refused_before_anything_is_done(small_config: Make, tmp_path: Path) -> None:
    settings = stopping(small_config, 3)
    no_val = replace(settings, data=replace(settings.data, val_json="", val_images=""))
    assert refusal(no_val, tmp_path / "run") == (
        "--schedule.patience 3 can't work: expected 0, since there is no validation set to measure AP on "
        "(--data.val-json and --data.val-images)"
    )
    assert refusal(with_run(settings, evaluate_limit=200), tmp_path / "run") == (
        "--run.evaluate-limit 200 can't work: expected 0 (the whole validation set) with --schedule.patience"
    )
    content = json.loads(Path(settings.data.val_json).read_text())
    (tmp_path / "empty.json").write_text(json.dumps({**content, "annotations": []}))
    nothing = replace(settings, data=replace(settings.data, val_json=str(tmp_path / "empty.json")))
    assert "--schedule.patience 3 can't work" in (message := refusal(nothing, tmp_path / "run"))
    assert "nothing to measure" in message
    assert not (tmp_path / "run" / LAST).exists()
    assert lines(tmp_path / "run", "train") == []


def test_an_evaluation_that_a_signal_cuts_off_before_it_counts_is_made_again(
    small_config: Make, tmp_path: Path, scripted: Callable[[list[float]], list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where a tracker's server doesn't answer while the figures are logged, and the user presses Ctrl-C."""
    settings = stopping(small_config, 5)
    scripted([0.1, 0.2, 0.9])
    logged = loop.RunLog.evaluation

    def interrupted(self: loop.RunLog, step: int, metrics: dict[str, float], limit: int) -> None:
        if step == 3:
            raise Interrupted(signal.SIGINT)
        logged(self, step, metrics, limit)

    with monkeypatch.context() as patch:
        patch.setattr(loop.RunLog, "evaluation", interrupted)
        with pytest.raises(Interrupted):
            train_detector(settings, tmp_path / "run")
    begun = read_checkpoint(tmp_path / "run" / LAST).step if (tmp_path / "run" / LAST).exists() else 0
    scripted([0.1, 0.2, 0.9, *[0.3] * 7][begun:])
    result = train_detector(settings, tmp_path / "run", resume=True)
    assert (result.steps, result.best_ap) == (8, 0.9)
    assert read_checkpoint(tmp_path / "run" / BEST).step == 3


@pytest.mark.parametrize("every", [1, 2, 3, 4, 9, 10, 11])
@pytest.mark.parametrize("patience", [0, 1, 2, 4, 8, 9])
def test_a_patience_that_no_run_can_use_up_is_a_warning(every: int, patience: int, small_config: Make) -> None:
    config = stopping(small_config, patience, evaluate_every=every)
    best, ends = BestAp(-1.0, 0), False
    for step in range(1, config.schedule.steps + 1):  # the run that stops first: AP never rises
        if step % every == 0:
            best.add(0.0)
        ends = ends or best.ends(step, config.schedule)
    line = idle_patience(config)
    assert (line is None) == (ends or patience == 0)
    if line is not None:
        count = 9 // every
        there = f"there {'is' if count == 1 else 'are'} {count} "
        assert f"needs {patience + 1} evaluations before the last step, and {there}" in line


def test_the_warning_is_printed(
    small_config: Make, tmp_path: Path, scripted: Callable[[list[float]], list[int]], capsys: pytest.CaptureFixture[str]
) -> None:
    scripted(APS)
    train_detector(stopping(small_config, 2, evaluate_every=5), tmp_path / "run")
    assert "warning: --schedule.patience 2 can't end this run: it needs 3 " in capsys.readouterr().out
