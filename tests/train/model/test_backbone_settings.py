"""A backbone brings its normalisation; what doesn't fit it is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch
import torchvision

from runtime.errors import UserError
from runtime.manifest import Preprocess
from train.__main__ import parse
from train.build import build_detector, without_weights
from train.checkpoint import Checkpoint, Classes, load_detector, save_checkpoint
from train.config import Backbone, BackboneName, Config
from train.config.check import check_config
from train.config.overrides import follow_backbone
from train.config.recipes import RECIPES, atss_lite0, atss_r18_fpn, atss_tiny
from train.model.backbones import BACKBONES, Network, build_backbone
from train.model.weights import WeightsError, load_state
from train.pretrained import dialects
from train.trainer.loop import train_detector

Make = Callable[..., Config]
IMAGENET = {"mean": (123.675, 116.28, 103.53), "std": (58.395, 57.12, 57.375), "pad_value": (124, 116, 104)}
CENTERED = {"mean": (127.5,) * 3, "std": (127.5,) * 3, "pad_value": (127,) * 3}


def parsed(recipe: str, *arguments: str) -> Config:
    return parse([recipe, "--out", "x", *arguments])[0]


def normalization(pre: Preprocess) -> dict[str, tuple[float, ...]]:
    return {"mean": pre.mean, "std": pre.std, "pad_value": pre.pad_value}


def timm() -> ModuleType:
    return pytest.importorskip("timm", reason="pip install 'atss-toolkit[edge]'")


@pytest.mark.parametrize("name", BACKBONES)
def test_the_normalisation_is_what_the_weights_publishers_say(name: BackboneName) -> None:
    own, timm_name = BACKBONES[name].normalization, BACKBONES[name].timm_name
    if timm_name is not None:
        published = timm().create_model(timm_name, pretrained=False).pretrained_cfg
        mean, std = published["mean"], published["std"]
    else:
        from torchvision.models import get_model_weights

        transforms = get_model_weights(name)["IMAGENET1K_V1"].transforms()
        mean, std = transforms.mean, transforms.std
    torch.testing.assert_close([v / 255 for v in own.mean], list(mean))
    torch.testing.assert_close([v / 255 for v in own.std], list(std))
    assert own.pad_value == tuple(int(v + 0.5) if v % 1 != 0.5 else int(v) for v in own.mean)


@pytest.mark.parametrize("name", BACKBONES)
def test_the_names_of_published_weights_are_the_backbones_or_the_classifiers(name: BackboneName) -> None:
    entry = BACKBONES[name]
    with torch.device("meta"):
        if entry.timm_name is not None:
            whole = timm().create_model(entry.timm_name, pretrained=False).state_dict()
        else:
            whole = torchvision.models.get_model(name, weights=None).state_dict()
        network = build_backbone(Backbone(name, weights="none"))
    load_state(network.published, whole, entry.classifier, "the publisher", name)
    assert all(any(key.startswith(prefix) for key in whole) for prefix in entry.classifier)
    own = next(key for key in whole if not key.startswith(entry.classifier))
    with pytest.raises(WeightsError, match=f"the weights of the publisher don't fit {name}: 1 missing"):
        load_state(
            network.published, {k: v for k, v in whole.items() if k != own}, entry.classifier, "the publisher", name
        )


@pytest.mark.parametrize("name", BACKBONES)
def test_the_settings_that_a_backbone_has_are_those_that_change_it(name: BackboneName) -> None:
    entry = BACKBONES[name]
    if entry.timm_name is not None:
        timm()

    def build(**changes: object) -> Network:
        with torch.device("meta"):
            return build_backbone(replace(Backbone(name, weights="none"), **changes))

    plain = build()
    assert len(plain.stages) == entry.stages
    if "stem_channels" in entry.settings:
        assert build(stem_channels=32).channels != plain.channels
    if "deformable_stages" in entry.settings:
        assert set(build(deformable_stages=(5,)).state_dict()) != set(plain.state_dict())


def test_recipes_have_their_backbones_normalisation() -> None:
    for recipe in RECIPES.values():
        config = recipe()
        check_config(config)
        assert normalization(config.preprocess) == BACKBONES[config.model.backbone.name].normalization._asdict()


@pytest.mark.parametrize(
    ("recipe", "name", "expected"),
    [
        ("atss_lite0", "efficientnet_lite1", CENTERED),
        ("atss_lite0", "resnet18", IMAGENET),
        ("atss_tiny", "efficientnet_lite0", CENTERED),
        ("atss_tiny", "resnet50", IMAGENET),
        ("atss_r50_fpn_1x", "resnet101", IMAGENET),
    ],
)
def test_the_normalisation_follows_the_backbone(recipe: str, name: str, expected: dict) -> None:
    config = parsed(recipe, "--model.backbone.name", name)
    assert normalization(config.preprocess) == expected
    assert parsed(recipe, f"--model.backbone.name={name}") == config
    base = RECIPES[recipe]()
    assert config == replace(
        base,
        preprocess=replace(base.preprocess, **expected),
        model=replace(base.model, backbone=replace(config.model.backbone, name=name)),
    )


def test_a_normalisation_that_the_user_gave_stays() -> None:
    mean = ("--preprocess.mean", "100", "101", "102")
    config = parsed("atss_lite0", "--model.backbone.name", "resnet18", *mean)
    assert config.preprocess.mean == (100, 101, 102)
    assert config.preprocess.std == IMAGENET["std"]
    pad = parsed("atss_lite0", "--model.backbone.name", "resnet18", "--preprocess.pad_value", "127", "127", "127")
    assert normalization(pad.preprocess) == {**IMAGENET, "pad_value": (127, 127, 127)}


def test_a_normalisation_that_is_not_the_old_backbones_own_stays() -> None:
    """A foreign checkpoint's, such as caffe's, belongs to its weights."""
    recipe = replace(atss_tiny(), preprocess=replace(atss_tiny().preprocess, mean=(102.9801, 115.9465, 122.7717)))
    changed = replace(recipe, model=replace(recipe.model, backbone=Backbone("efficientnet_lite0", weights="none")))
    found = follow_backbone(changed, recipe, ()).preprocess
    assert found.mean == recipe.preprocess.mean
    assert found.std == CENTERED["std"]
    assert follow_backbone(recipe, recipe, ()) == recipe


def test_settings_of_the_old_backbone_do_not_stay_behind() -> None:
    """A recipe's own stem is no choice of the user's."""
    assert parsed("atss_tiny", "--model.backbone.name", "efficientnet_lite0").model.backbone.stem_channels == 64
    assert parsed("atss_tiny", "--model.backbone.name", "resnet34").model.backbone.stem_channels == 32
    dcn = parsed("atss_dcn_r50_fpn_1x", "--model.backbone.name", "resnet18").model.backbone
    assert dcn.deformable_stages == ()


@pytest.mark.parametrize(
    ("recipe", "arguments", "message"),
    [
        ("atss_lite0", ["--model.backbone.stem-channels", "32"], "stem-channels 32: efficientnet_lite0 has no such"),
        ("atss_lite0", ["--model.backbone.deformable-stages", "4", "5"], "stages 4 5: efficientnet_lite0 has no such"),
        ("atss_lite0", ["--model.backbone.bottleneck-stride", "1x1"], "stride 1x1: efficientnet_lite0 has no such"),
        ("atss_lite0", ["--model.backbone.frozen-stages", "9"], "frozen-stages 9: efficientnet_lite0 has 8 stages"),
        ("atss_tiny", ["--model.backbone.frozen-stages", "6"], "frozen-stages 6: resnet18 has 5 stages"),
        ("atss_tiny", ["--model.backbone.bottleneck-stride", "1x1"], "stride 1x1: resnet18 has no such"),
        (
            "atss_tiny",
            ["--model.backbone.name", "resnet50", "--model.backbone.stem-channels", "32"],
            "--model.backbone.stem-channels 32: resnet50 has no such setting",
        ),
        (
            "atss_lite0",
            ["--preprocess.mean", "123.675", "116.28", "103.53", "--preprocess.std", "58.395", "57.12", "57.375"],
            "efficientnet_lite0 were trained with 127.5 127.5 127.5 and 127.5",
        ),
    ],
)
def test_what_does_not_fit_is_refused(recipe: str, arguments: list[str], message: str) -> None:
    with pytest.raises(UserError) as caught:
        parsed(recipe, *arguments)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_from_code_the_wrong_normalisation_is_refused_when_training_starts(small_config: Make, tmp_path: Path) -> None:
    lite = atss_lite0()
    wrong = replace(lite, model=replace(lite.model, backbone=Backbone("resnet18")))
    with pytest.raises(UserError, match="ImageNet weights of resnet18 were trained with"):
        train_detector(wrong, tmp_path / "run")
    scratch = replace(wrong, model=replace(lite.model, backbone=Backbone("resnet18", weights="none")))
    check_config(scratch)  # which learns whatever it is given
    own = replace(atss_r18_fpn(), preprocess=replace(atss_r18_fpn().preprocess, mean=(0.0, 0.0, 0.0)))
    check_config(own)
    with pytest.raises(UserError, match="size-divisor 20 can't work"):
        train_detector(replace(small_config(), preprocess=Preprocess(64, 96, size_divisor=20)), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_foreign_checkpoints_bring_their_own() -> None:
    for dialect in dialects.DIALECTS:
        check_config(replace(atss_tiny(), preprocess=dialect.preprocess, model=dialect.model))


def test_a_checkpoint_with_a_setting_that_was_ignored_still_loads(tmp_path: Path) -> None:
    pytest.importorskip("timm", reason="pip install 'atss-toolkit[edge]'")
    lite = atss_lite0()
    backbone = Backbone("efficientnet_lite0", weights="none", stem_channels=32, frozen_stages=20)
    config = replace(lite, model=replace(lite.model, backbone=backbone))
    with pytest.raises(UserError, match="no such setting"):
        check_config(config)
    state = build_detector(without_weights(config.model), 2, config.preprocess).state_dict()
    classes = Classes(("a", "b"), (1, 2))
    save_checkpoint(tmp_path / "old.pt", Checkpoint(config, classes, 1, state, None, {}, {}, None, -1.0))
    assert load_detector(tmp_path / "old.pt").config == config
