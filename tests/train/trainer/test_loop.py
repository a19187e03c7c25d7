"""The loop: it learns, logs and evaluates; a bad loss, bad data or a full disk loses nothing."""

from __future__ import annotations

import errno
import json
import math
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from runtime.coco import load_coco
from runtime.errors import UserError
from runtime.training_log import LOG, read_log
from train.checkpoint import load_detector, read_checkpoint
from train.config import Config
from train.loss.criterion import Criterion, Losses
from train.trainer import loop
from train.trainer.device import pick_device, pick_precision
from train.trainer.loop import BEST, LAST, evaluate_model, train_detector

Make = Callable[..., Config]


def with_run(settings: Config, **changes: Any) -> Config:
    return replace(settings, run=replace(settings.run, **changes))


def with_validation(settings: Config) -> Config:
    folder = Path(settings.data.train_json).parent
    return replace(
        settings, data=replace(settings.data, val_json=str(folder / "val.json"), val_images=str(folder / "val"))
    )


def refusal(settings: Config, out: Path) -> str:
    with pytest.raises(UserError) as caught:
        train_detector(settings, out)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def lines(out: Path, kind: str) -> list[dict[str, Any]]:
    return [line for line in read_log(out / LOG) if line["kind"] == kind]


def test_some_dozen_steps_on_few_images_reduce_the_loss(small_config: Make, tmp_path: Path) -> None:
    settings = small_config(steps=90, batch=4, learning_rate=4e-3, warmup_steps=5)
    content = json.loads(Path(settings.data.train_json).read_text())
    content["images"] = content["images"][:8]
    kept = {image["id"] for image in content["images"]}
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] in kept]
    (tmp_path / "eight.json").write_text(json.dumps(content))
    settings = replace(settings, data=replace(settings.data, train_json=str(tmp_path / "eight.json")))
    train_detector(settings, tmp_path / "run")
    for name in ("total", "classification", "box"):
        values = [line[name] for line in lines(tmp_path / "run", "train")]
        first, last = sum(values[:8]) / 8, sum(values[-8:]) / 8
        assert last < 0.8 * first, f"{name}: {first:.3f} → {last:.3f}"


def test_evaluation_best_checkpoint_and_log(small_config: Make, tmp_path: Path) -> None:
    settings = with_run(with_validation(small_config(ema=0.5)), evaluate_every=2, evaluate_limit=2, checkpoint_every=4)
    train_detector(settings, tmp_path / "run")
    evaluations = lines(tmp_path / "run", "val")
    assert [line["step"] for line in evaluations] == [2, 4, 6]
    assert [line.get("limit") for line in evaluations] == [2, 2, None]
    last, best = read_checkpoint(tmp_path / "run" / LAST), read_checkpoint(tmp_path / "run" / BEST)
    assert last.step == 6
    assert last.ap == evaluations[-1]["AP"]
    # The first two were of a part of the images: they say too little to be the best.
    assert (best.step, best.best_ap, last.best_ap) == (6, evaluations[-1]["AP"], evaluations[-1]["AP"])
    loaded = load_detector(tmp_path / "run" / LAST)
    val_set = load_coco(settings.data.val_json, settings.data.val_images)
    assert evaluate_model(loaded.detector, loaded.config, loaded.classes, val_set)["AP"] == last.ap
    assert any((tmp_path / "run" / "tensorboard").iterdir())


def test_a_limit_that_leaves_no_image_out_is_none(
    small_config: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for limit, counts in ((3, False), (4, True), (200, True)):  # of 4 images
        settings = with_run(with_validation(small_config(steps=4)), evaluate_every=2, evaluate_limit=limit)
        aps = iter((0.5, 0.25))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(loop, "evaluate_model", lambda *_, aps=aps: {"AP": next(aps), "AP50": 0.5, "AP75": 0.5})
            result = train_detector(settings, tmp_path / str(limit))
        assert result.best_ap == (0.5 if counts else 0.25)
        assert read_checkpoint(tmp_path / str(limit) / BEST).step == (2 if counts else 4)
        assert ("(first 3 images)" in capsys.readouterr().out) == (not counts)


def test_a_checkpoint_between_evaluations_has_no_ap_of_earlier_weights(small_config: Make, tmp_path: Path) -> None:
    settings = with_run(with_validation(small_config(steps=5)), evaluate_every=2, evaluate_limit=0, checkpoint_every=3)
    saved: dict[tuple[str, int], float | None] = {}
    real = loop.save_checkpoint

    def keep(path: Path, checkpoint: Any) -> None:
        saved[path.name, checkpoint.step] = checkpoint.ap
        real(path, checkpoint)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "save_checkpoint", keep)
        result = train_detector(settings, tmp_path / "run")
    by_step = {line["step"]: line["AP"] for line in lines(tmp_path / "run", "val")}
    assert set(by_step) == {2, 4, 5}
    assert saved[LAST, 3] is None
    assert saved[LAST, 5] == by_step[5] == result.ap
    assert saved[BEST, 2] == by_step[2]
    assert all(ap == by_step[step] for (name, step), ap in saved.items() if name == BEST)


def test_the_best_is_of_all_evaluations_on_the_whole_set(small_config: Make, tmp_path: Path) -> None:
    settings = with_run(with_validation(small_config(ema=0.5)), evaluate_every=2, checkpoint_every=4)
    train_detector(settings, tmp_path / "run")
    by_step = {line["step"]: line["AP"] for line in lines(tmp_path / "run", "val")}
    best = read_checkpoint(tmp_path / "run" / BEST)
    assert best.best_ap == max(by_step.values()) == by_step[best.step]
    assert read_checkpoint(tmp_path / "run" / LAST).best_ap == best.best_ap


def test_evaluating_leaves_the_training_as_it_was(small_config: Make, tmp_path: Path) -> None:
    for ema in (0.0, 0.5):
        plain = small_config(ema=ema)
        train_detector(plain, tmp_path / f"plain{ema}")
        train_detector(with_run(with_validation(plain), evaluate_every=2), tmp_path / f"val{ema}")
        ours, theirs = (read_checkpoint(tmp_path / f"{name}{ema}" / LAST).model for name in ("plain", "val"))
        assert all(torch.equal(ours[k], theirs[k]) for k in ours)


def test_other_precisions_and_layouts_run(small_config: Make, tmp_path: Path) -> None:
    settings = small_config(steps=2, clip_norm=0.0)
    # oneDNN's bfloat16 gradient of a stride-2 convolution of a single cell (P7 from a P6 of 1 × 1) is not computed but
    # whatever stood in memory (torch 2.14); a canvas of 96 px keeps clear of it.
    settings = replace(settings, augment=replace(settings.augment, crop=(96, 96)))
    for changes in ({"precision": "bf16"}, {"channels_last": False}, {"precision": "auto", "device": "auto"}):
        out = tmp_path / "-".join(map(str, changes.values()))
        state = read_checkpoint(train_detector(with_run(settings, **changes), out).last).model
        assert all(v.dtype == torch.float32 for v in state.values() if v.is_floating_point())


def finite(state: dict[str, torch.Tensor]) -> bool:
    return all(bool(v.isfinite().all()) for v in state.values())


def poison(monkeypatch: pytest.MonkeyPatch, step: int, change: Callable[[Losses], Losses]) -> None:
    """From call `step` on (from 0) the criterion's losses are changed."""
    real, calls = Criterion.__call__, iter(range(1000))

    def poisoned(*args: Any) -> Losses:
        losses = real(*args)
        return change(losses) if next(calls) >= step else losses

    monkeypatch.setattr(Criterion, "__call__", poisoned)


def last_ids(settings: Config, step: int) -> list[int]:
    data = load_coco(settings.data.train_json, settings.data.train_images)
    return [batch.image_ids for batch in loop.build_training_batches(data, settings, 0)][step]


def test_a_loss_that_is_not_finite_names_the_images_and_keeps_the_checkpoint(
    small_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = small_config()
    poison(monkeypatch, 4, lambda losses: losses._replace(total=losses.total * math.nan))
    message = refusal(settings, tmp_path / "run")
    assert "nan at step 5" in message
    assert str(last_ids(settings, 4)) in message
    assert "last.pt holds the last good checkpoint" in message
    loaded = load_detector(tmp_path / "run" / LAST)
    assert loaded.step == 3
    assert finite(loaded.detector.state_dict())
    assert len(lines(tmp_path / "run", "train")) == 4


def test_a_gradient_that_is_not_finite_never_reaches_a_checkpoint(
    small_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss of step 6, a checkpoint's, is finite; its gradient is not: √x at 0, times 0."""
    settings = small_config()

    def infinite_slope(losses: Losses) -> Losses:
        return losses._replace(total=losses.total + (losses.total * 0).sqrt() * 0)

    poison(monkeypatch, 5, infinite_slope)
    message = refusal(settings, tmp_path / "run")
    assert "step 6" in message
    assert str(last_ids(settings, 5)) in message
    checkpoint = read_checkpoint(tmp_path / "run" / LAST)
    assert checkpoint.step == 3
    assert finite(checkpoint.model)


def test_a_learning_rate_far_too_high_stops_before_a_checkpoint(small_config: Make, tmp_path: Path) -> None:
    message = refusal(
        small_config(learning_rate=1000.0, clip_norm=0.0, warmup_steps=0, optimizer="sgd"), tmp_path / "run"
    )
    assert "no checkpoint was written yet" in message
    assert "--schedule.learning-rate" in message
    assert not (tmp_path / "run" / LAST).exists()


def test_a_folder_that_cannot_be_written(small_config: Make, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert str(tmp_path / "file") in refusal(small_config(), tmp_path / "file")
    assert str(tmp_path / "file") in refusal(small_config(), tmp_path / "file" / "run")


def test_a_full_disk_leaves_the_last_checkpoint(
    small_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, kept = os.replace, []

    def full(source: Any, target: Any) -> None:
        if Path(target).name == LAST and kept:
            raise OSError(errno.ENOSPC, "No space left on device", str(source))
        real(source, target)
        if Path(target).name == LAST:
            kept.append(Path(target).read_bytes())

    monkeypatch.setattr(os, "replace", full)
    message = refusal(small_config(), tmp_path / "run")
    assert "No space left on device" in message
    assert LAST in message
    assert (tmp_path / "run" / LAST).read_bytes() == kept[0]
    assert read_checkpoint(tmp_path / "run" / LAST).step == 3
    assert not [p for p in (tmp_path / "run").iterdir() if ".tmp" in p.name]


def test_without_data_the_message_names_the_options(small_config: Make, tmp_path: Path) -> None:
    settings = small_config()
    message = refusal(replace(settings, data=replace(settings.data, train_json="", train_images="")), tmp_path / "run")
    assert "--data.train-json" in message
    assert "train.shapes" in message
    missing = replace(settings, data=replace(settings.data, train_json=str(tmp_path / "none.json")))
    assert "none.json" in refusal(missing, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_unreadable_image_is_reported_and_training_goes_on(
    small_config: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = small_config(steps=12)
    folder = Path(settings.data.train_images)
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    bad = sorted(tmp_path.iterdir())[0]
    bad.write_bytes(b"")
    train_detector(replace(settings, data=replace(settings.data, train_images=str(tmp_path))), tmp_path / "run")
    out = capsys.readouterr().out
    assert "warning: skipped an image" in out
    assert bad.name in out


def test_devices_and_precisions_that_are_not_there(small_config: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="no CUDA device"):
        pick_device("cuda")
    with pytest.raises(UserError, match="fp16 trains on a GPU only"):
        pick_precision(with_run(small_config(), precision="fp16"))
    assert pick_device("auto") == torch.device("cpu")
    assert pick_precision(with_run(small_config(), precision="bf16")) == torch.bfloat16


@pytest.mark.parametrize(
    ("abilities", "kernels", "expected"),
    [
        ({}, "AVX512", torch.float32),
        ({"avx2": True}, "AVX2", torch.float32),
        ({"avx2": True, "avx512_bf16": True}, "AVX512", torch.bfloat16),
        ({"avx2": True, "amx_bf16": True}, "AVX512", torch.bfloat16),
        ({"avx2": True, "avx512_bf16": True}, "AVX2", torch.float32),  # held below it: ATEN_CPU_CAPABILITY
        ({"avx512_bf16": True}, "DEFAULT", torch.float32),
    ],
)
def test_bf16_is_chosen_where_the_processor_has_it_and_torch_uses_it(
    small_config: Make,
    monkeypatch: pytest.MonkeyPatch,
    abilities: dict[str, bool],
    kernels: str,
    expected: torch.dtype,
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: abilities)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: kernels)
    assert pick_precision(with_run(small_config(), precision="auto")) == expected


def test_a_compiled_network_takes_the_same_steps_under_the_same_names(
    small_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the compiler's front end alone: its C++ takes a minute."""
    settings, real, compiled = small_config(steps=3, ema=0.5), torch.compile, []

    def front_end(function: Callable[..., Any], **options: Any) -> Any:
        compiled.append(function)
        return real(function, **{**options, "backend": "eager"})

    monkeypatch.setattr(torch, "compile", front_end)
    plain = read_checkpoint(train_detector(settings, tmp_path / "plain").last)
    assert compiled == []
    other = read_checkpoint(train_detector(with_run(settings, compile=True), tmp_path / "compiled").last)
    assert len(compiled) == 1
    for ours, theirs in ((plain.model, other.model), (plain.averaged or {}, other.averaged or {})):
        assert ours.keys() == theirs.keys()
        assert all(torch.allclose(ours[k], theirs[k], atol=1e-4) for k in ours)
    train_detector(replace(settings, schedule=replace(settings.schedule, steps=4)), tmp_path / "compiled", resume=True)
    assert "warning" not in capsys.readouterr().out


@pytest.mark.slow
def test_network_and_losses_compiled_to_machine_code_train(
    small_config: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = small_config(steps=3)
    train_detector(settings, tmp_path / "plain")
    train_detector(with_run(settings, compile=True, compile_loss="always"), tmp_path / "compiled")
    assert "warning" not in capsys.readouterr().out
    for ours, theirs in zip(lines(tmp_path / "plain", "train"), lines(tmp_path / "compiled", "train"), strict=True):
        assert theirs["total"] == pytest.approx(ours["total"], rel=1e-3)
