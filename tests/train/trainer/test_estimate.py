"""The estimate before the first step: its memory against real steps, its advice, and that it changes nothing."""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from runtime.coco import load_coco
from runtime.errors import UserError
from train.build import build_criterion, build_detector, build_training_batches, without_weights
from train.checkpoint import read_checkpoint
from train.config import Config
from train.config.recipes import RECIPES
from train.data.loader import TrainBatch
from train.loss.criterion import Targets
from train.trainer import estimate
from train.trainer.backward import backward
from train.trainer.loop import train_detector
from train.trainer.optim import AveragedWeights, build_optimizer
from train.trainer.step_memory import LiveBytes, step_memory

Make = Callable[..., Config]
CANVAS = (96, 128)


def run_of(config: Config, **changes: Any) -> estimate.Run:
    dataset = load_coco(config.data.train_json, config.data.train_images)
    network = build_detector(config.model, len(dataset.classes), config.preprocess)
    run = estimate.Run(network, config, dataset, config.schedule.batch, 1, torch.device("cpu"), torch.float32, 1000)
    return run._replace(**changes)


def batches_of(run: estimate.Run) -> Any:
    return build_training_batches(run.dataset, run.config, 0)


def bytes_of(module: nn.Module) -> int:
    return sum(value.numel() * value.element_size() for value in module.state_dict().values())


def test_a_short_run_has_no_estimate_and_its_first_batch_is_left_alone(small_config: Make) -> None:
    run, said = run_of(small_config(), steps=estimate.FEWEST_STEPS - 1), []
    batches = iter([])
    assert estimate.with_estimate(batches, run, said.append) is batches
    assert said == []


def test_live_bytes_are_those_of_a_count_by_hand() -> None:
    live = LiveBytes()
    with live:
        a = torch.zeros(1000)  # 4000 bytes
        b = a.view(10, 100)[:5]  # of the same memory
        c = b * 2  # 2000 bytes
        assert live.now == 6000
        d = (c + 1).sum()  # 2000 bytes for a moment, and 4
        del c
        assert (live.now, live.peak) == (4004, 8004)
        del a
        assert live.now == 4004  # `b` keeps the memory
        del b, d
    assert (live.now, live.peak) == (0, 8004)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("images", "pieces"), [(1, 1), (4, 1), (4, 2)])
def test_a_step_without_numbers_needs_what_a_real_step_does(
    small_config: Make, images: int, pieces: int, dtype: torch.dtype
) -> None:
    run = run_of(small_config())
    estimated = step_memory(run.network, build_criterion(run.config.model), images, CANVAS, 3, dtype, pieces)
    kept: dict[int, int] = {}  # bytes that autograd keeps for the backward pass by its own account, by address

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    network = copy.deepcopy(run.network)
    batch = torch.zeros((images, *CANVAS, 3), dtype=torch.uint8)
    targets = Targets(
        torch.tensor([[[4.0, 4.0, 40.0, 40.0]] * 3] * images),
        torch.zeros((images, 3), dtype=torch.int64),
        torch.ones((images, 3), dtype=torch.bool),
    )
    live = LiveBytes()
    for tensor in (*network.state_dict().values(), batch, *targets):
        live.add(tensor)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    with live, torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        backward(network, build_criterion(run.config.model), batch, targets, pieces, dtype, scaler)
    assert estimated == pytest.approx(live.peak, rel=0.02)
    weights = {value.untyped_storage().data_ptr() for value in network.state_dict().values()}
    activations = sum(size for address, size in kept.items() if address not in weights)
    if pieces == 1:  # otherwise those of the pieces are not alive at once
        assert bytes_of(network) + activations < estimated < 2 * bytes_of(network) + 1.5 * activations


@pytest.fixture(scope="module")
def measured_on_an_h200(repository: Path) -> dict[tuple[int, str], float]:
    """Bytes at the peak of steps of `atss_r50_fpn_1x` at 800×1344, by batch and precision, in that GPU's report."""
    found = {}

    def look(value: Any) -> None:
        if isinstance(value, dict) and value.get("detector") == "atss_r50_fpn_1x" and "peak_memory_gb" in value:
            found[value["batch"], value["precision"]] = 1e9 * value["peak_memory_gb"]
        for each in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
            look(each)

    look(json.loads((repository / "docs/gpu_report_h200.json").read_text(encoding="utf-8")))
    return found


@pytest.mark.parametrize(("precision", "batch"), [("tf32", 2), ("tf32", 16), ("bf16", 2), ("bf16", 16), ("fp16", 4)])
def test_a_step_on_a_gpu_needs_what_was_measured_on_one(
    measured_on_an_h200: dict[tuple[int, str], float], precision: str, batch: int
) -> None:
    config = RECIPES["atss_r50_fpn_1x"]()
    network = build_detector(without_weights(config.model), 80, config.preprocess)
    dtype = {"tf32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    criterion = build_criterion(config.model)
    step = step_memory(network, criterion, batch, (800, 1344), 7, dtype, device="cuda")
    found = step + estimate.kept_memory(network, config.schedule, 1)
    assert found == pytest.approx(measured_on_an_h200[batch, precision], rel=0.01)


def test_memory_grows_with_images_and_shrinks_in_pieces_and_in_half_precision(small_config: Make) -> None:
    run = run_of(small_config())

    def needed(images: int, pieces: int = 1, dtype: torch.dtype = torch.float32) -> int:
        return step_memory(run.network, build_criterion(run.config.model), images, CANVAS, 3, dtype, pieces)

    fixed = 2 * bytes_of(run.network)  # weights and gradients
    one, four = needed(1) - fixed, needed(4) - fixed
    assert 3 * one < four < 4.5 * one
    assert needed(4, pieces=4) - fixed < 0.5 * four
    assert 0.4 < (needed(4, dtype=torch.bfloat16) - fixed) / four < 0.8


@pytest.mark.parametrize(("optimizer", "states"), [("sgd", 1), ("adamw", 2)])
@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_optimizer_and_averages_keep_what_the_real_ones_do(
    small_config: Make, optimizer: str, states: int, ema: float
) -> None:
    run = run_of(small_config(optimizer=optimizer, ema=ema))
    schedule = run.config.schedule
    real = build_optimizer(run.network, schedule)
    for parameter in run.network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    real.step()
    of_state = [v for each in real.state.values() for v in each.values() if isinstance(v, torch.Tensor)]
    expected = sum(value.numel() * value.element_size() for value in of_state)
    assert expected > 0.9 * states * bytes_of(run.network)
    if ema:
        expected += bytes_of(AveragedWeights(run.network, ema).model)
    assert estimate.kept_memory(run.network, schedule, 1) == pytest.approx(expected, rel=0.02)
    more = estimate.kept_memory(run.network, schedule, 2) - estimate.kept_memory(run.network, schedule, 1)
    assert more == sum(4 * p.numel() for p in run.network.parameters() if p.requires_grad)


@pytest.mark.parametrize("transpose", [0.0, 0.5])
@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("crop", [(0, 0), (70, 90)])
def test_no_batch_has_a_larger_canvas(
    small_config: Make, crop: tuple[int, int], grouped: bool, transpose: float
) -> None:
    config = small_config(steps=60)
    config = replace(
        config,
        augment=replace(config.augment, crop=crop, transpose=transpose),
        data=replace(config.data, group_by_aspect=grouped),
    )
    run = run_of(config)
    seen = np.array([batch.images.shape[1:3] for batch in batches_of(run)])
    largest = estimate.largest_canvas(run.dataset.sizes_hw, config)
    assert (seen <= largest).all()
    assert seen.max(axis=0).tolist() == list(largest)


@pytest.mark.parametrize("norm", ["train", "frozen"])
def test_a_run_with_an_estimate_takes_the_steps_of_one_without(
    small_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], norm: str
) -> None:
    config = small_config(steps=4, ema=0.9)
    config = replace(config, model=replace(config.model, backbone=replace(config.model.backbone, batch_norm=norm)))
    plain = read_checkpoint(train_detector(config, tmp_path / "plain").last)
    assert "estimate" not in capsys.readouterr().out
    monkeypatch.setattr(estimate, "FEWEST_STEPS", 1)
    first = replace(config, run=replace(config.run, checkpoint_every=2))

    class Cut(Exception):
        pass

    def cut(*args: Any) -> Any:
        for number, batch in enumerate(build_training_batches(*args)):
            if number == 2:
                raise Cut
            yield batch

    with pytest.raises(Cut):
        train_detector(first, tmp_path / "estimated", make_batches=cut)
    estimated = read_checkpoint(train_detector(first, tmp_path / "estimated", resume=True).last)
    assert capsys.readouterr().out.count("estimate: ") == 4  # memory and time, of the run and of the resumed run
    for name, value in plain.model.items():
        assert torch.equal(value, estimated.model[name]), name


def test_the_lines_name_memory_steps_and_what_the_time_leaves_out(
    small_config: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(estimate, "busy_share", lambda: 0.04)
    config = small_config(batch=4)
    run, said = run_of(config, steps=300), []
    batches = list(estimate.with_estimate(batches_of(run), run, said.append))
    assert [batch.image_ids for batch in batches] == [batch.image_ids for batch in batches_of(run)]
    memory, seconds = said
    assert memory.startswith("estimate: ")
    assert memory.endswith("MB of memory for 4 images of at most 64×64")
    assert " for 300 steps of " in seconds
    assert seconds.endswith("without evaluations")
    workers = replace(config, data=replace(config.data, workers=2), run=replace(config.run, compile=True))
    line = estimate.time_line(run._replace(config=workers), batches[0], 0.0)
    assert line.endswith("without evaluations, waiting for images and compilation")


def test_the_time_is_said_to_be_that_of_a_busy_machine(small_config: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimate, "busy_share", lambda: 0.713)
    run = run_of(small_config(), steps=300)
    for processes, busy in ((1, ", while other programs use 71% of the processors"), (2, "")):
        said: list[str] = []
        list(estimate.with_estimate(batches_of(run), run._replace(processes=processes), said.append))
        assert said[-1].endswith(f"without evaluations{busy}")


def test_time_is_that_of_a_step_times_the_steps(small_config: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    run, calls = run_of(small_config(), steps=300), []

    def slow(network: nn.Module, *args: Any, **options: Any) -> None:
        calls.append(network)
        time.sleep(2.0 if len(calls) == 1 else 0.2)  # the first pass allocates and compiles

    monkeypatch.setattr(estimate, "backward", slow)
    line = estimate.time_line(run, next(batches_of(run)), 0.1)
    assert len(calls) == 3
    assert all(network is not run.network for network in calls)
    assert line.startswith("estimate: 90 s for 300 steps of 0.3 s") or line.startswith("estimate: 2 min for 300")
    calls.clear()
    estimate.time_line(run._replace(steps=200), next(batches_of(run)), 0.1)
    assert len(calls) == 2


@pytest.mark.parametrize(("free", "accumulate"), [(0.7, "2"), (0.45, "4"), (0.001, None)])
def test_too_little_memory_is_a_warning_with_what_fits(
    small_config: Make, monkeypatch: pytest.MonkeyPatch, free: float, accumulate: str | None
) -> None:
    run = run_of(small_config(batch=4))
    run = run._replace(config=replace(run.config, augment=replace(run.config.augment, crop=(512, 512))))
    fits = estimate.memory_lines(run)
    assert len(fits) == 1
    criterion = build_criterion(run.config.model)
    whole = step_memory(run.network, criterion, 4, (512, 512), 10, torch.float32)
    monkeypatch.setattr(estimate, "free_memory", lambda device: int(1.3 * free * whole))
    _, warning = estimate.memory_lines(run)
    assert warning.startswith("warning: this machine has ")
    if accumulate is None:
        assert "single images don't fit" in warning
    else:
        assert f"--run.accumulate {accumulate} needs " in warning


def test_a_failed_estimate_is_one_line_and_costs_no_batch(small_config: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    run, said = run_of(small_config()), []

    def fail(*args: Any, **options: Any) -> int:
        raise RuntimeError("no kernel\nfor this")

    for name in ("step_memory", "backward"):
        with monkeypatch.context() as patch:
            patch.setattr(estimate, name, fail)
            said.clear()
            batches = list(estimate.with_estimate(batches_of(run), run, said.append))
        assert said[-1] == "no estimate of memory and time: no kernel for this"
        assert [batch.image_ids for batch in batches] == [batch.image_ids for batch in batches_of(run)]


def test_what_the_first_batch_raises_is_the_runs_error(small_config: Make) -> None:
    def bad() -> Any:
        raise UserError("no image can be read")
        yield TrainBatch

    with pytest.raises(UserError, match="no image can be read"):
        estimate.with_estimate(bad(), run_of(small_config()), lambda line: None)
