"""A run that torchrun restarts goes on from its last checkpoint by itself; nobody else's run is touched."""

from __future__ import annotations

import json
import os
import random
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from runtime.training_log import LOG, read_log
from train.checkpoint import read_checkpoint
from train.config import Config
from train.trainer.distributed import ALONE, World, fresh_store
from train.trainer.elastic import CLAIM, continues
from train.trainer.loop import LAST, train_detector
from train.trainer.start import TrainingError

from .test_resume import losses, run_interrupted, same_weights

Make = Callable[..., Config]
ROOT = Path(__file__).parents[3]


def test_two_processes_one_killed_then_one_failing_take_the_steps_of_an_undisturbed_run(
    small_config: Make, tmp_path: Path
) -> None:
    config = small_config(steps=9, batch=4, ema=0.9)
    config = replace(config, run=replace(config.run, checkpoint_every=2))
    (tmp_path / "settings.json").write_text(json.dumps(asdict(config)))
    done = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"),
            *("--max-restarts", "3", "--monitor-interval", "0.1"),
            *("-m", "tests.support.elastic_rank", str(tmp_path / "settings.json"), str(tmp_path)),
        ],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "starts.txt").read_text() == "3"
    assert "the disk is full" in done.stderr
    assert losses(tmp_path / "disturbed") == losses(tmp_path / "through")
    assert same_weights(tmp_path / "disturbed" / LAST, tmp_path / "through" / LAST)
    first, second = (read_checkpoint(tmp_path / name / LAST) for name in ("disturbed", "through"))
    assert first.step == second.step == 9
    assert str(first.optimizer) == str(second.optimizer)


def test_all_nodes_go_on_when_the_process_of_one_is_killed(tmp_path: Path) -> None:
    """torchrun counts the restart on that node alone."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        meeting = f"127.0.0.1:{free.getsockname()[1]}"
    nodes = [
        subprocess.Popen(
            [
                *(sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1"),
                *("--max-restarts", "3", "--monitor-interval", "0.1", "--rdzv-backend", "c10d"),
                *("--rdzv-endpoint", meeting, "-m", "tests.support.elastic_node", str(tmp_path)),
            ],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    try:
        said = [node.communicate(timeout=100)[1] for node in nodes]
    finally:
        for node in nodes:
            node.kill()
    assert [node.returncode for node in nodes] == [0, 0], said
    answers = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)]
    assert sorted(answer["restarts"] for answer in answers) == [0, 1], "else every node counts, and this tests nothing"
    assert [answer["continues"] for answer in answers] == [True, True]


def test_each_start_has_a_store_of_its_own_in_the_one_that_outlives_them() -> None:
    shared = torch.distributed.HashStore()
    for rank in (1, 2):  # a start whose first process was killed before it answered
        shared.set(f"question/{rank}", f"old{rank}")
    names = random.Random(0)

    def process(start: int, rank: int, delay_s: float) -> str:
        time.sleep(delay_s)
        store = fresh_store(shared, World(rank, 3))
        if rank == 0:
            assert not store.check(["address"]), "nothing of an earlier start is in sight"
            store.set("address", f"of start {start}")
        return store.get("address").decode()

    with ThreadPoolExecutor(3) as pool:
        for start in range(8):
            delays = [names.choice([0.0, 0.02]) for _ in range(3)]
            found = list(pool.map(process, [start] * 3, range(3), delays, timeout=20))
            assert found == [f"of start {start}"] * 3


@pytest.fixture
def torchrun(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, int], None]:
    """Makes this process one of a torchrun with an id, at its start or after restarts."""

    def become(run_id: str, restarts: int) -> None:
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", run_id)
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", str(restarts))

    return become


Become = Callable[[str, int], None]


def test_without_torchrun_nothing_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    for resume in (False, True):
        assert continues(tmp_path, resume, ALONE) is resume
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("run_id", ["none", "4711"])
def test_a_restart_goes_on(run_id: str, torchrun: Become, small_config: Make, tmp_path: Path) -> None:
    config, out = small_config(), tmp_path / "cut"
    torchrun(run_id, 0)
    run_interrupted(config, out, 4)
    assert read_checkpoint(out / LAST).step == 3
    torchrun(run_id, 1)
    assert continues(out, False, ALONE)
    assert train_detector(config, out).steps == 6
    train_detector(config, tmp_path / "through")
    assert losses(out) == losses(tmp_path / "through")
    torch.testing.assert_close(read_checkpoint(out / LAST).model, read_checkpoint(tmp_path / "through" / LAST).model)


def test_a_restart_before_the_first_checkpoint_begins_anew(
    torchrun: Become, small_config: Make, tmp_path: Path
) -> None:
    torchrun("none", 0)
    run_interrupted(small_config(), tmp_path, 1)
    assert not (tmp_path / LAST).exists()
    torchrun("none", 1)
    train_detector(small_config(), tmp_path)
    assert len(losses(tmp_path)) == 6


@pytest.mark.parametrize("made_by", ["nobody", "none", "4711"])
@pytest.mark.parametrize("run_id", ["none", "4712"])
def test_a_run_of_somebody_else_is_refused_at_every_restart(
    made_by: str, run_id: str, torchrun: Become, small_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if made_by == "nobody":
        monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    else:
        torchrun(made_by, 0)
    run_interrupted(small_config(), tmp_path, 4)
    before = (tmp_path / LAST).read_bytes(), (tmp_path / LOG).read_bytes()
    for restarts in range(3):
        torchrun(run_id, restarts)
        with pytest.raises(TrainingError, match="exists already: add --resume"):
            train_detector(small_config(), tmp_path)
    assert ((tmp_path / LAST).read_bytes(), (tmp_path / LOG).read_bytes()) == before
    torchrun(run_id, 0)
    train_detector(small_config(), tmp_path, resume=True)
    torchrun(run_id, 1)
    assert continues(tmp_path, False, ALONE), "a run that was resumed under torchrun is its own from then on"


def test_a_job_with_an_id_of_its_own_goes_on_when_it_is_queued_again(
    torchrun: Become, small_config: Make, tmp_path: Path
) -> None:
    torchrun("4711", 0)
    run_interrupted(small_config(), tmp_path, 4)
    torchrun("4711", 0)
    train_detector(small_config(), tmp_path)
    assert [line["step"] for line in read_log(tmp_path / LOG) if line["kind"] == "train"] == list(range(1, 7))


@pytest.mark.parametrize("content", ["", "[]", "{}", "null", '{"run_id": 3}', '{"run_id": "no'])
def test_a_damaged_claim_is_nobody_s(content: str, torchrun: Become, tmp_path: Path) -> None:
    (tmp_path / CLAIM).write_text(content)
    torchrun("3", 1)
    assert not continues(tmp_path, False, ALONE)
