"""Several processes take the steps of one: losses, evaluation, resuming, and what happens when one of them fails."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from runtime.coco import load_coco
from runtime.detector import Detector as RuntimeDetector
from runtime.errors import EXIT_BAD_INPUT, UserError
from runtime.training_log import LOG, read_log
from tests.support.ranks import DEFECTS, patched
from tests.train.loss.test_criterion import CANVAS, MODEL, SCENE, random_outputs, targets_of
from train import validate
from train.build import build_criterion, build_detector, build_training_batches
from train.checkpoint import load_detector, read_checkpoint
from train.config import Config
from train.loss.criterion import Losses, Normalizers, Targets, at_least_one
from train.model.detector import DenseOutputs
from train.trainer import loop
from train.trainer.distributed import ALONE, World, all_gather, all_reduce, local_batch_size, require_agreement
from train.trainer.evaluation import TorchBackend, evaluate_distributed
from train.trainer.loop import LAST, train_detector

Make = Callable[..., Config]
ROOT = Path(__file__).parents[3]
STEPS = 8
# Relative. Sums in another order differ by 4e-7 in what is logged and 6e-7 in what was learnt, whichever kernels sum
# them; the planted defects differ by more than 100 times this.
TOLERANCE = 1e-5


def settings_for(make: Make, batch_norm: str = "frozen") -> Config:
    """A few steps without batch statistics, evaluated at the end.

    By SGD, whose step is as smooth as the gradient: AdamW divides by how large a gradient was, so that where that is
    next to nothing rounding decides on a whole step, and after a dozen of them no two processors agree.
    """
    config = make(steps=STEPS, batch=4, warmup_steps=2, optimizer="sgd", learning_rate=0.01, weight_decay=1e-4)
    folder = Path(config.data.train_json).parent
    backbone = replace(config.model.backbone, batch_norm=batch_norm)
    head = replace(config.model.head, prior_probability=0.1)  # so early it finds something already
    return replace(
        config,
        model=replace(config.model, backbone=backbone, head=head),
        data=replace(config.data, val_json=str(folder / "val.json"), val_images=str(folder / "val")),
        run=replace(config.run, checkpoint_every=3),
    )


class Ended(NamedTuple):
    code: int
    stderr: str


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def processes(how: str, count: int) -> list[Ended]:
    """Start processes as torchrun would, but without its agent, which would end the others by itself."""
    meeting_point = torch.distributed.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    torchrun = {
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": str(meeting_point.port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_RESTART_COUNT": "0",
        "WORLD_SIZE": str(count),
    }
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.support.failing_rank", how],
            cwd=ROOT,
            env=environment() | torchrun | {"RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(count)
    ]
    return [Ended(process.returncode, err) for process in started for _, err in [process.communicate(timeout=100)]]


class Runs(NamedTuple):
    config: Config
    out: Path
    answers: dict[str, Any]


@pytest.fixture(scope="module")
def runs(small_config: Make, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """One start of torchrun for everything that two processes can show."""
    out = tmp_path_factory.mktemp("runs")
    config = settings_for(small_config)
    (out / "settings.json").write_text(json.dumps(asdict(config)))
    done = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"),
            *("-m", "tests.support.ranks", str(out / "settings.json"), str(out)),
        ],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    train_detector(config, out / "one")
    return Runs(config, out, json.loads((out / "answers.json").read_text()))


def rows(out: Path, kind: str = "train") -> list[dict[str, float]]:
    """The logged lines without the speed; every step once."""
    lines = [line for line in read_log(out / LOG) if line["kind"] == kind]
    if kind == "train":
        assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    return [{k: v for k, v in line.items() if k not in ("kind", "images_per_second")} for line in lines]


def worst_difference(a: Path, b: Path) -> float:
    pairs = [(x[k], y[k]) for x, y in zip(rows(a), rows(b), strict=True) for k in x]
    return max(abs(x - y) / max(abs(x), 1e-3) for x, y in pairs)


def learnt(config: Config, out: Path) -> torch.Tensor:
    """What the run added to the weights it started from, in one row."""
    torch.manual_seed(config.run.seed)
    checkpoint = read_checkpoint(out / LAST)
    start = build_detector(config.model, len(checkpoint.classes.names), config.preprocess).state_dict()
    assert start.keys() == checkpoint.model.keys()
    moved = [(checkpoint.model[k] - v).flatten().double() for k, v in start.items() if v.is_floating_point()]
    return torch.cat(moved)


def assert_same_run(config: Config, a: Path, b: Path) -> None:
    assert worst_difference(a, b) < TOLERANCE
    ours, theirs = learnt(config, a), learnt(config, b)
    assert (ours - theirs).norm() < TOLERANCE * ours.norm()


def test_two_processes_have_the_losses_of_one(runs: Runs) -> None:
    assert_same_run(runs.config, runs.out / "one", runs.out / "two")


def test_pieces_of_two_processes_have_the_losses_of_one_batch(runs: Runs) -> None:
    assert_same_run(runs.config, runs.out / "one", runs.out / "pieces")


@pytest.mark.parametrize("defect", DEFECTS)
def test_the_comparison_notices(defect: str, runs: Runs) -> None:
    assert worst_difference(runs.out / "one", runs.out / defect) > 100 * TOLERANCE
    ours, theirs = learnt(runs.config, runs.out / "one"), learnt(runs.config, runs.out / defect)
    assert (ours - theirs).norm() > 100 * TOLERANCE * ours.norm()


def test_the_comparison_is_of_what_rounding_hardly_changes(
    runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gradients with ten times the error of a float32 sum stay within the limit, so no processor's order decides."""
    noise, real = torch.Generator().manual_seed(0), loop.clip_gradients

    def rounded(parameters: list[torch.nn.Parameter], maximum: float) -> torch.Tensor:
        for parameter in parameters:
            if parameter.grad is not None:
                parameter.grad *= 1 + 1e-6 * torch.randn(parameter.grad.shape, generator=noise)
        return real(parameters, maximum)

    monkeypatch.setattr(loop, "clip_gradients", rounded)
    train_detector(runs.config, tmp_path / "rounded")
    assert worst_difference(runs.out / "one", tmp_path / "rounded") > 0, "else this shows nothing"
    assert_same_run(runs.config, runs.out / "one", tmp_path / "rounded")


def test_a_run_of_two_processes_resumes_to_the_same_losses(runs: Runs) -> None:
    assert rows(runs.out / "cut") == rows(runs.out / "two")


def test_evaluation_by_two_processes_is_that_of_one(runs: Runs) -> None:
    loaded = load_detector(runs.out / "two" / LAST)
    dataset = load_coco(runs.config.data.val_json, runs.config.data.val_images)
    detector = RuntimeDetector(TorchBackend(loaded.detector, loaded.config, loaded.classes))
    alone = evaluate_distributed(detector, dataset, batch=2, progress=False)

    def key(result: dict[str, Any]) -> tuple[Any, ...]:
        return result["image_id"], -result["score"], result["category_id"], result["bbox"]

    assert runs.answers["figures"] == alone.metrics.values
    assert runs.answers["everyone's figures"] == [alone.metrics.values] * 2
    assert runs.answers["images"] == len(dataset) == 4
    assert sorted(runs.answers["results"], key=key) == sorted(alone.results, key=key)
    assert {r["image_id"] for r in alone.results} == set(dataset.image_ids.tolist()), "else this shows little"
    assert rows(runs.out / "two", "val")[-1]["AP"] == loaded.ap == alone.metrics.values["AP"]


def test_validate_scores_several_sizes_from_the_command_line(
    runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = runs.config.data
    command = ["validate", str(runs.out / "two" / LAST), "--annotations", data.val_json, "--images", data.val_images]
    figures = {}
    for name, options in {"plain": [], "one": ["--scales", "64"], "many": ["--scales", "48", "64", "--flip"]}.items():
        monkeypatch.setattr(sys, "argv", [*command, *options, "--json", str(tmp_path / name)])
        assert validate.main() == 0
        figures[name] = {k: v for k, v in json.loads((tmp_path / name).read_text()).items() if k in ("AP", "AR100")}
    assert figures["plain"] == figures["one"] != figures["many"]
    capsys.readouterr()


def test_a_bad_loss_of_one_process_stops_all_and_names_its_images(runs: Runs) -> None:
    dataset = load_coco(runs.config.data.train_json, runs.config.data.train_images)
    mine = list(build_training_batches(dataset, runs.config, 0, runs.config.schedule.batch // 2, 1))[1].image_ids
    first, second = runs.answers["bad loss"]
    assert first == second
    assert f"nan at step 2, on the images with ids {mine}" in first
    assert not (runs.out / "nan" / LAST).exists()


def test_early_stopping_ends_all_processes_at_the_same_step(runs: Runs) -> None:
    assert runs.answers["stopped"] == [3, 3]
    assert read_checkpoint(runs.out / "stopped" / LAST).step == 3


def test_processes_that_disagree_say_on_what(runs: Runs) -> None:
    assert all("the weather is day 1 in process 1 but day 0 in process 0" in m for m in runs.answers["disagree"])


def test_a_process_that_fails_ends_those_that_wait_for_it_and_those_that_do_not() -> None:
    waiting, failed, busy = processes("fail", 3)
    assert [p.code for p in (waiting, failed, busy)] == [EXIT_BAD_INPUT] * 3
    assert failed.stderr == "error: the disk is full\n"
    assert waiting.stderr == "error: process 0 of 3 stops: process 1 failed: the disk is full\n"
    assert busy.stderr == "error: process 2 of 3 stops: process 1 failed: the disk is full\n"


def test_a_process_that_is_killed_ends_the_others() -> None:
    waiting, killed = processes("kill", 2)
    assert killed.code == -9
    assert waiting.code == EXIT_BAD_INPUT
    assert "another process ended without a message" in waiting.stderr
    assert "Traceback" not in waiting.stderr


def test_alone_nothing_is_exchanged() -> None:
    values = torch.tensor([1.0, 2.0])
    assert all_reduce(values, ALONE) is values
    assert all_gather("x", ALONE) == ["x"]
    require_agreement({"anything": 1}, ALONE)
    assert ALONE.is_main


def test_a_batch_that_cannot_be_shared_is_refused(small_config: Make, tmp_path: Path) -> None:
    assert local_batch_size(16, 2, World(3, 4)) == 4
    with pytest.raises(UserError, match="multiple of 6"):
        local_batch_size(16, 2, World(0, 3))
    config = small_config(batch=2)
    with pytest.raises(UserError, match=r"--schedule\.batch must be a multiple of 3"):
        train_detector(replace(config, run=replace(config.run, accumulate=3)), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("size", [2, 4])
def test_processes_together_see_the_images_of_one(size: int, small_config: Make) -> None:
    config = small_config(batch=4)
    dataset = load_coco(config.data.train_json, config.data.train_images)
    alone = list(build_training_batches(dataset, config, 1))
    parts = [list(build_training_batches(dataset, config, 1, 4 // size, rank)) for rank in range(size)]
    for step, whole in enumerate(alone):
        assert [i for part in parts for i in part[step].image_ids] == whole.image_ids
        assert torch.equal(torch.cat([part[step].images for part in parts]), whole.images)


@pytest.mark.parametrize("scene", [SCENE, [[], []], [[], [[4.0, 4.0, 60.0, 50.0]]]], ids=["mixed", "empty", "half"])
def test_parts_with_the_counts_of_the_whole_add_up_to_it(scene: list[list[list[float]]]) -> None:
    targets, outputs = targets_of(scene), random_outputs(len(scene), seed=1)
    whole = build_criterion(MODEL)(outputs, targets, CANVAS)
    parts = [(slice(i, i + 1), Targets(*(t[i : i + 1] for t in targets))) for i in range(len(scene))]
    counts = [build_criterion(MODEL).normalizers(part, CANVAS) for _, part in parts]
    total = at_least_one(Normalizers(*(torch.stack(values).sum() for values in zip(*counts, strict=True))))
    sums = torch.zeros(4)
    for rows_, part in parts:
        piece = DenseOutputs(*([m[rows_] for m in maps] for maps in outputs))
        sums += torch.stack(build_criterion(MODEL)(piece, part, CANVAS, total)).detach()
    torch.testing.assert_close(sums, torch.stack(whole).detach(), rtol=1e-5, atol=1e-6)


def test_accumulated_pieces_have_the_losses_of_the_batch(runs: Runs, tmp_path: Path) -> None:
    for pieces in (2, 4):
        train_detector(replace(runs.config, run=replace(runs.config.run, accumulate=pieces)), tmp_path / f"{pieces}")
        assert_same_run(runs.config, runs.out / "one", tmp_path / f"{pieces}")


@pytest.mark.parametrize("weight", [0.0, 0.9, 2.0])
def test_a_piece_of_another_weight_is_noticed(weight: float, runs: Runs, tmp_path: Path) -> None:
    """One of four that is left out, that counts too little, or twice."""
    config = replace(runs.config, run=replace(runs.config.run, accumulate=4))
    with patched(lambda call, losses: Losses(*(weight * loss for loss in losses)) if call % 4 == 3 else losses):
        train_detector(config, tmp_path / "pieces")
    assert worst_difference(runs.out / "one", tmp_path / "pieces") > 100 * TOLERANCE


def test_batch_statistics_are_noticed(small_config: Make, tmp_path: Path) -> None:
    """Batch norm that learns its statistics sees smaller batches in pieces: the comparison is no rubber stamp."""
    config = settings_for(small_config, batch_norm="train")
    config = replace(config, data=replace(config.data, val_json="", val_images=""))
    train_detector(config, tmp_path / "whole")
    train_detector(replace(config, run=replace(config.run, accumulate=2)), tmp_path / "pieces")
    assert worst_difference(tmp_path / "whole", tmp_path / "pieces") > 100 * TOLERANCE
