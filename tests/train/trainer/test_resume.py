"""A run that was interrupted and resumed takes the steps of one that ran through, bit for bit."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from runtime.errors import UserError
from runtime.training_log import LOG, read_log
from train.checkpoint import read_checkpoint
from train.config import Config
from train.loss.criterion import Criterion
from train.trainer.loop import LAST, train_detector

Make = Callable[..., Config]

SCRIPT = """
import json, sys, torch
from pathlib import Path
from runtime.records import record_from_dict
from train.config.schema import Config
from train.trainer.loop import train_detector
torch.set_num_threads(1)
train_detector(record_from_dict(Config, json.loads(sys.argv[1]), "test"), Path(sys.argv[2]))
"""


def losses(out: Path) -> list[tuple[float, ...]]:
    """What each step logged, but for its speed; every step once."""
    lines = [line for line in read_log(out / LOG) if line["kind"] == "train"]
    assert [line["step"] for line in lines] == list(range(1, len(lines) + 1))
    names = ("total", "classification", "box", "centerness", "grad_norm", "lr")
    return [tuple(line[name] for name in names) for line in lines]


def same_weights(a: Path, b: Path) -> bool:
    first, second = read_checkpoint(a), read_checkpoint(b)
    pairs = [(first.model, second.model)]
    if first.averaged is not None:
        assert second.averaged is not None
        pairs.append((first.averaged, second.averaged))
    return all(torch.equal(x[k], y[k]) for x, y in pairs for k in x)


def interrupt_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The criterion's call number `step`, from 0, is interrupted."""
    calls = iter(range(10_000))
    real = Criterion.__call__

    def interrupted(*args: Any) -> Any:
        if next(calls) == step:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(Criterion, "__call__", interrupted)


def run_interrupted(settings: Config, out: Path, step: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        interrupt_at(step, patch)
        with pytest.raises(KeyboardInterrupt):
            train_detector(settings, out)


def test_killed_at_a_random_moment_and_resumed(small_config: Make, tmp_path: Path) -> None:
    settings = small_config(steps=60, ema=0.9)
    through, killed = tmp_path / "through", tmp_path / "killed"
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, json.dumps(asdict(settings)), str(killed)],
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    train_detector(settings, through)
    moment = random.randint(4, 25)
    give_up = time.monotonic() + 120
    while len(read_log(killed / LOG)) < moment and process.poll() is None:
        assert time.monotonic() < give_up
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "it was killed in the middle"
    assert len(read_log(killed / LOG)) < 60
    assert train_detector(settings, killed, resume=True).last == killed / LAST
    assert losses(killed) == losses(through), f"killed at step {moment}"
    assert same_weights(killed / LAST, through / LAST)


COMMAND = "from runtime.errors import run_main\n" + SCRIPT.replace(
    "train_detector(record", "run_main(lambda: train_detector(record"
).replace("Path(sys.argv[2]))", "Path(sys.argv[2])) and None)")


@pytest.mark.skipif(os.name != "posix", reason="sends signals")
@pytest.mark.parametrize(("number", "word"), [(signal.SIGINT, "interrupted"), (signal.SIGTERM, "terminated")])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_signal_keeps_what_is_done(
    number: signal.Signals, word: str, workers: int, small_config: Make, tmp_path: Path
) -> None:
    """The step that runs is finished and written, no process is left, and the run goes on from there, bit for bit."""
    settings = small_config(steps=400, ema=0.9, decay="step", milestones=(9_999,))
    settings = replace(
        settings,
        run=replace(settings.run, checkpoint_every=10_000),
        data=replace(settings.data, workers=workers),
    )
    cut = tmp_path / "cut"
    process = subprocess.Popen(
        [sys.executable, "-c", COMMAND, json.dumps(asdict(settings)), str(cut)],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        text=True,
        start_new_session=True,
    )
    give_up = time.monotonic() + 120
    while len(read_log(cut / LOG)) < 5 and process.poll() is None:
        assert time.monotonic() < give_up
        time.sleep(0.002)
    assert not (cut / LAST).exists()
    # A terminal sends Ctrl-C to the children too; SIGTERM goes to the process alone.
    (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)
    _, said = process.communicate(timeout=60)
    assert (process.returncode, said.splitlines()[-1:]) == (128 + number, [word])
    assert "Traceback" not in said
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)
    done = read_checkpoint(cut / LAST).step
    assert 5 <= done < 400
    assert done == len(losses(cut))
    short = replace(settings, schedule=replace(settings.schedule, steps=done + 4))
    train_detector(short, tmp_path / "through")
    train_detector(short, cut, resume=True)
    assert losses(cut) == losses(tmp_path / "through")
    assert same_weights(cut / LAST, tmp_path / "through" / LAST)


@pytest.mark.parametrize(
    "schedule",
    [
        {"optimizer": "adamw", "decay": "cosine", "ema": 0.9},
        {"optimizer": "sgd", "decay": "step", "milestones": (3, 4), "ema": 0.0, "learning_rate": 0.01},
    ],
    ids=["adamw", "sgd"],
)
@pytest.mark.parametrize("step", [1, 3, 5])
def test_interrupted_and_resumed(schedule: dict[str, Any], step: int, small_config: Make, tmp_path: Path) -> None:
    """Before the first checkpoint, right after it, and between it and the second."""
    settings = small_config(**schedule)
    train_detector(settings, tmp_path / "through")
    run_interrupted(settings, tmp_path / "cut", step)
    train_detector(settings, tmp_path / "cut", resume=True)
    assert losses(tmp_path / "cut") == losses(tmp_path / "through")
    assert same_weights(tmp_path / "cut" / LAST, tmp_path / "through" / LAST)


@pytest.mark.parametrize("step", [3, 5])
@pytest.mark.parametrize("workers", [0, 1])
def test_mosaics_and_repeated_images_resume_alike(workers: int, step: int, small_config: Make, tmp_path: Path) -> None:
    settings = small_config(ema=0.9, batch=4, steps=8)
    settings = replace(
        settings,
        augment=replace(settings.augment, mosaic=0.7, mosaic_until=0.8),
        data=replace(settings.data, repeat_threshold=0.9, workers=workers),
    )
    train_detector(settings, tmp_path / "through")
    run_interrupted(settings, tmp_path / "cut", step)
    train_detector(settings, tmp_path / "cut", resume=True)
    assert losses(tmp_path / "cut") == losses(tmp_path / "through")
    assert same_weights(tmp_path / "cut" / LAST, tmp_path / "through" / LAST)


def test_the_comparison_notices_another_seed(small_config: Make, tmp_path: Path) -> None:
    settings = small_config()
    train_detector(settings, tmp_path / "a")
    train_detector(replace(settings, run=replace(settings.run, seed=1)), tmp_path / "b")
    assert losses(tmp_path / "a") != losses(tmp_path / "b")
    assert not same_weights(tmp_path / "a" / LAST, tmp_path / "b" / LAST)


def test_resuming_a_finished_run_changes_nothing(small_config: Make, tmp_path: Path) -> None:
    settings = small_config()
    train_detector(settings, tmp_path / "a")
    before = losses(tmp_path / "a"), (tmp_path / "a" / LAST).read_bytes()
    train_detector(settings, tmp_path / "a", resume=True)
    assert (losses(tmp_path / "a"), (tmp_path / "a" / LAST).read_bytes()) == before
    train_detector(replace(settings, schedule=replace(settings.schedule, steps=4)), tmp_path / "a", resume=True)


def test_a_lower_learning_rate_on_resuming_is_used(small_config: Make, tmp_path: Path) -> None:
    """It is what the message about a loss that isn't finite advises."""
    settings = small_config(learning_rate=1e-3, decay="step", milestones=(), warmup_steps=0)
    run_interrupted(settings, tmp_path / "a", 4)
    lower = replace(settings, schedule=replace(settings.schedule, learning_rate=1e-5, weight_decay=0.01))
    train_detector(lower, tmp_path / "a", resume=True)
    assert [row[-1] for row in losses(tmp_path / "a")] == pytest.approx([1e-3] * 3 + [1e-5] * 3)
    groups = read_checkpoint(tmp_path / "a" / LAST).optimizer["param_groups"]
    assert {g["weight_decay"] for g in groups} == {0.0, 0.01}


def test_an_average_switched_on_later_starts_at_the_trained_weights(small_config: Make, tmp_path: Path) -> None:
    settings = small_config(ema=0.0)
    run_interrupted(settings, tmp_path / "a", 4)
    trained = read_checkpoint(tmp_path / "a" / LAST).model
    # So slow a learning rate that neither the model nor its average moves from there.
    still = replace(settings.schedule, ema=0.99, learning_rate=1e-12)
    train_detector(replace(settings, schedule=still), tmp_path / "a", resume=True)
    averaged = read_checkpoint(tmp_path / "a" / LAST).averaged
    assert averaged is not None
    for name in ("head.class_logits.weight", "backbone.conv1.weight"):
        torch.testing.assert_close(averaged[name], trained[name], atol=1e-6, rtol=1e-5)


def refusal(settings: Config, out: Path, resume: bool = True) -> str:
    with pytest.raises(UserError) as caught:
        train_detector(settings, out, resume)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def cut(small_config: Make, tmp_path: Path) -> Path:
    """A run that has a checkpoint of step 3."""
    run_interrupted(small_config(), tmp_path / "cut", 4)
    return tmp_path / "cut"


def test_an_existing_run_is_not_overwritten_by_mistake(cut: Path, small_config: Make) -> None:
    before = (cut / LAST).read_bytes(), (cut / LOG).read_bytes()
    assert "add --resume" in refusal(small_config(), cut, resume=False)
    assert ((cut / LAST).read_bytes(), (cut / LOG).read_bytes()) == before


def test_resume_without_a_run_starts_one(small_config: Make, tmp_path: Path) -> None:
    assert train_detector(small_config(), tmp_path / "new", resume=True).last.exists()


def test_a_damaged_checkpoint_is_not_resumed_and_stays(cut: Path, small_config: Make) -> None:
    (cut / LAST).write_bytes((cut / LAST).read_bytes()[:1000])
    before = (cut / LAST).read_bytes(), (cut / LOG).read_bytes()
    assert "can't be read as a checkpoint" in refusal(small_config(), cut)
    assert ((cut / LAST).read_bytes(), (cut / LOG).read_bytes()) == before


def test_other_classes_are_not_resumed(cut: Path, small_config: Make, tmp_path: Path) -> None:
    settings = small_config()
    content = json.loads(Path(settings.data.train_json).read_text())
    content["categories"][0]["name"] = "zebra"
    (tmp_path / "other.json").write_text(json.dumps(content))
    other = replace(settings, data=replace(settings.data, train_json=str(tmp_path / "other.json")))
    message = refusal(other, cut)
    assert "zebra" in message
    assert "choose another --out" in message


def test_another_model_is_not_resumed(cut: Path, small_config: Make) -> None:
    settings = small_config()
    anchors = replace(settings.model.anchors, scale=4.0)
    assert "another model" in refusal(replace(settings, model=replace(settings.model, anchors=anchors)), cut)


def test_another_normalisation_is_not_resumed(cut: Path, small_config: Make) -> None:
    settings = small_config()
    pre = replace(settings.preprocess, mean=(127.5, 127.5, 127.5))
    message = refusal(replace(settings, preprocess=pre), cut)
    assert "normalised by ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375), 'rgb'), not by ((127.5," in message


def test_another_optimizer_is_not_resumed(cut: Path, small_config: Make) -> None:
    assert "--schedule.optimizer adamw" in refusal(small_config(optimizer="sgd"), cut)
