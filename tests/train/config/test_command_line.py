"""`python -m train`: recipes, overrides, and what a slip of the keyboard gets for an answer."""

from __future__ import annotations

import runpy
import subprocess
import sys
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from runtime.errors import UserError
from train.__main__ import parse
from train.build import build_criterion, build_detector, without_weights
from train.config.check import check_config
from train.config.overrides import override
from train.config.recipes import RECIPES, atss_tiny
from train.loss.criterion import Targets
from train.trainer.optim import build_optimizer


def rejected(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What is said about arguments of atss_tiny that can't be used."""
    with pytest.raises(SystemExit) as caught:
        parse(["atss_tiny", "--out", "x", *arguments])
    assert caught.value.code not in (0, None)
    return " ".join(capsys.readouterr().err.replace("│", " ").split())


def test_a_recipe_alone_is_its_configuration() -> None:
    for name, recipe in RECIPES.items():
        config, options = parse([name, "--out", "runs/x"])
        assert config == recipe()
        assert config.recipe == name
        assert (options.out, options.resume) == (Path("runs/x"), False)


def test_overrides_of_every_kind_change_their_field_only() -> None:
    config, options = parse(
        [
            *("atss_tiny", "--out", "o", "--resume", "--schedule.steps", "7", "--schedule.learning-rate", "1e-3"),
            *("--model.backbone.weights", "w.pth", "--augment.crop", "64", "96", "--run.no-channels-last"),
            *("--schedule.milestones", "3", "4", "5", "--run.precision", "bf16", "--preprocess.short-side", "128"),
        ]
    )
    tiny = atss_tiny()
    assert options.resume
    assert config == replace(
        tiny,
        preprocess=replace(tiny.preprocess, short_side=128),
        model=replace(tiny.model, backbone=replace(tiny.model.backbone, weights="w.pth")),
        augment=replace(tiny.augment, crop=(64, 96)),
        schedule=replace(tiny.schedule, steps=7, learning_rate=1e-3, milestones=(3, 4, 5)),
        run=replace(tiny.run, precision="bf16", channels_last=False),
    )


def test_a_recipe_that_is_missing_or_no_recipe_is_named() -> None:
    with pytest.raises(UserError, match=r"^no recipe before --data.train-json; usage: .* begin with is atss_tiny"):
        parse(["--data.train-json", "a.json", "--out", "x"])
    with pytest.raises(UserError, match="the recipe comes first: atss_lite0 before --out; usage"):
        parse(["--out", "x", "atss_lite0"])
    for name in ("model.onnx", "a/model.ENGINE"):
        with pytest.raises(UserError, match=rf"^{name}: training starts from a recipe or a checkpoint \(.pt\)"):
            parse([name, "--out", "x"])


@pytest.mark.parametrize(("given", "meant"), [("atss_tinny", "atss_tiny"), ("atss_r5", "atss_r50_fpn_1x")])
def test_an_unknown_recipe_suggests_the_nearest(given: str, meant: str) -> None:
    with pytest.raises(UserError, match=f"no recipe '{given}', did you mean {meant}"):
        parse([given, "--out", "x"])


def test_a_recipe_like_none_lists_them_all() -> None:
    with pytest.raises(UserError) as caught:
        parse(["zzzzz"])
    assert "did you mean" not in str(caught.value)
    assert all(name in str(caught.value) for name in RECIPES)


def test_an_unknown_option_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    message = rejected(capsys, "--schedule.learning-rat", "3")
    assert "--schedule.learning-rat" in message
    assert "--schedule.learning-rate" in message.replace("--schedule.learning-rat ", "")


@pytest.mark.parametrize(
    ("option", "value"),
    [("--schedule.steps", "many"), ("--schedule.steps", "1.5"), ("--schedule.learning-rate", "fast")],
)
def test_a_value_of_a_wrong_type_is_named(option: str, value: str, capsys: pytest.CaptureFixture[str]) -> None:
    message = rejected(capsys, option, value)
    assert option in message
    assert value in message


def test_a_choice_that_is_none_lists_the_choices(capsys: pytest.CaptureFixture[str]) -> None:
    message = rejected(capsys, "--schedule.optimizer", "adam")
    assert "sgd" in message
    assert "adamw" in message


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((), "usage: python -m train RECIPE"),
        (("atss_tiny", "--out", "no/folder"), "--data.train-json"),
        (("atss_tiny", "--out", "x", "--schedule.stepz", "3"), "--schedule.steps"),
    ],
    ids=["nothing", "data", "option"],
)
def test_the_command_fails_without_a_traceback(
    arguments: tuple[str, ...],
    expected: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    """As `python -m train` runs it, in this process, which has torch already."""
    monkeypatch.chdir(tmp_path)  # the lock of a run's folder is left there
    monkeypatch.setattr(sys, "argv", ["train", *arguments])
    monkeypatch.delitem(sys.modules, "train.__main__")
    with pytest.raises(SystemExit) as caught:
        runpy.run_module("train", run_name="__main__", alter_sys=True)
    assert caught.value.code == 2
    err = capsys.readouterr().err
    assert expected in err
    assert "Traceback" not in err


def test_help_is_no_error(repository: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "train", "--help"], cwd=repository, capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert all(name in done.stdout for name in RECIPES)
    assert "RECIPE --help lists all settings" in done.stdout
    assert "to begin with is\natss_tiny." in done.stdout


def leaves(value: Any, prefix: str = "") -> list[str]:
    """Names of all settings of a configuration."""
    if not is_dataclass(value):
        return [prefix]
    return [leaf for f in fields(value) for leaf in leaves(getattr(value, f.name), f"{prefix}.{f.name}")]


def test_the_help_of_a_recipe_lists_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse(["atss_tiny", "--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    for leaf in leaves(atss_tiny()):
        assert leaf.removeprefix(".").replace("_", "-") in text, leaf


IMPOSSIBLE = [
    ("--schedule.batch", "0"),
    ("--schedule.steps", "-1"),
    ("--run.log-every", "0"),
    ("--run.evaluate-every", "0"),
    ("--run.checkpoint-every", "0"),
    ("--model.assignment.k", "0"),
    ("--model.pyramid.levels", "2"),
    ("--model.head.group-norm-groups", "7"),
    ("--model.backbone.stem-channels", "0"),
    ("--augment.short-side-min", "999"),
    ("--preprocess.short-side", "0"),
    ("--model.head.prior-probability", "0"),
    ("--data.workers", "-1"),
    ("--data.max-megapixels", "0"),
    ("--data.max-megapixels", "nan"),
    ("--schedule.ema", "1"),
    ("--schedule.learning-rate", "0"),
    ("--preprocess.size-divisor", "48"),
]


@pytest.mark.parametrize(("option", "value"), IMPOSSIBLE, ids=[o for o, _ in IMPOSSIBLE])
def test_a_value_that_cannot_work_is_refused_at_once(option: str, value: str) -> None:
    with pytest.raises(UserError) as caught:
        parse(["atss_tiny", "--out", "x", option, value])
    assert option in str(caught.value)
    assert value in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_crop_of_a_single_top_cell_needs_float32() -> None:
    small = ["atss_tiny", "--out", "x", "--augment.crop", "64", "64"]  # five levels: P6 is one cell
    with pytest.raises(UserError, match=r"--augment.crop \(64, 64\) can't work: .* --run.precision fp32"):
        parse(small)
    parse([*small, "--run.precision", "fp32"])
    parse([*small, "--model.pyramid.levels", "4"])


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_every_recipe_is_possible_and_trains_a_step(name: str) -> None:
    recipe = RECIPES[name]()
    if recipe.model.backbone.name == "efficientnet_lite0":
        pytest.importorskip("timm", reason="pip install 'atss-toolkit[edge]'")
    check_config(recipe)
    torch.manual_seed(0)
    detector = build_detector(without_weights(recipe.model), 3, recipe.preprocess).train()
    optimizer = build_optimizer(detector, recipe.schedule)
    images = torch.randint(0, 256, (1, 64, 96, 3), dtype=torch.uint8)
    targets = Targets(
        torch.tensor([[[10.0, 10.0, 60.0, 50.0]]]), torch.tensor([[2]]), torch.ones(1, 1, dtype=torch.bool)
    )
    before = {k: v.clone() for k, v in detector.named_parameters()}
    losses = build_criterion(recipe.model)(detector(images), targets, (64, 96))
    losses.total.backward()
    optimizer.step()
    assert losses.total.isfinite()
    assert all(loss > 0 for loss in losses[:3])
    assert (losses.centerness > 0) == (recipe.model.head.centerness != "none")
    for key, parameter in detector.named_parameters():
        assert parameter.isfinite().all(), key
        if not parameter.requires_grad:
            assert torch.equal(parameter, before[key]), key
    moved = {k.split(".")[0] for k, p in detector.named_parameters() if not torch.equal(p, before[k])}
    assert moved == {"backbone", "pyramid", "head"}


def test_a_run_has_one_length() -> None:
    both = ["atss_tiny", "--out", "x", "--schedule.epochs", "1.5", "--schedule.steps=4"]
    with pytest.raises(UserError, match=r"--schedule.epochs 1.5 and --schedule.steps 4 both say how long the run is"):
        parse(both)
    with pytest.raises(UserError, match="both say how long"):
        override(atss_tiny(), {"schedule.steps": 4, "schedule.epochs": 1})
    assert parse([*both[:3], "--schedule.epochs", "0", "--schedule.steps", "4"])[0].schedule.steps == 4
    in_epochs = override(atss_tiny(), {"schedule.epochs": 2})
    in_steps = override(in_epochs, {"schedule.steps": 4}).schedule
    assert (in_epochs.schedule.epochs, in_steps.epochs, in_steps.steps) == (2, 0, 4)
