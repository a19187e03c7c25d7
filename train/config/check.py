"""Settings that can't work are refused by the name of their option, before anything is loaded."""

from __future__ import annotations

from functools import reduce
from typing import Any

from runtime.errors import UserError

from ..model.backbones import BACKBONES, COARSEST, Normalization, check_settings, entry_of
from .schema import Config

_AT_LEAST: dict[str, int] = {
    "preprocess.short_side": 1,
    "preprocess.long_side": 1,
    "preprocess.size_divisor": COARSEST,
    "thresholds.candidates_per_level": 1,
    "thresholds.detections": 1,
    "model.backbone.stem_channels": 1,
    "model.backbone.frozen_stages": 0,
    "model.pyramid.channels": 1,
    "model.pyramid.levels": 3,
    "model.head.convolutions": 0,
    "model.head.group_norm_groups": 0,
    "model.anchors.scales_per_octave": 1,
    "model.assignment.k": 1,
    "augment.short_side_min": 1,
    "data.workers": 0,
    "schedule.steps": 1,
    "schedule.batch": 1,
    "schedule.warmup_steps": 0,
    "schedule.weight_decay": 0,
    "schedule.clip_norm": 0,
    "run.seed": 0,
    "schedule.epochs": 0,
    "run.accumulate": 1,
    "run.log_every": 1,
    "run.checkpoint_every": 1,
    "run.evaluate_every": 1,
    "run.evaluate_limit": 0,
}
_MORE_THAN_0 = (
    "data.max_megapixels",
    "schedule.learning_rate",
    "schedule.repeat",
    "model.anchors.scale",
    "model.head.prior_probability",
)
_LESS_THAN_1 = ("model.head.prior_probability", "schedule.ema")


def check_config(config: Config) -> None:
    """Raise UserError, naming the option, where a setting can't work."""
    for name, least in _AT_LEAST.items():
        _require(config, name, _value(config, name) >= least, f"at least {least}")
    for name in _MORE_THAN_0:
        _require(config, name, _value(config, name) > 0, "more than 0")
    for name in _LESS_THAN_1:
        _require(config, name, 0 <= _value(config, name) < 1, "less than 1, and not negative")
    sides = config.augment.short_sides
    _require(config, "augment.short_sides", min(sides, default=1) >= 1, "sizes of at least 1")
    most = config.augment.short_side_max
    _require(
        config, "augment.short_side_min", config.augment.short_side_min <= most, f"at most short-side-max, here {most}"
    )
    _require(config, "augment.crop", min(config.augment.crop) > 0 or config.augment.crop == (0, 0), "two sizes, or 0 0")
    # Of a 3×3 convolution of stride 2 on a single cell, oneDNN leaves the bf16 weight gradient unset (torch 2.14, CPU).
    single_cell = 0 < max(config.augment.crop) <= 8 << (config.model.pyramid.levels - 2)
    _require(
        config,
        "augment.crop",
        not single_cell or config.run.precision == "fp32",
        f"a larger crop for {config.model.pyramid.levels} pyramid levels, or --run.precision fp32",
    )
    divisible = config.preprocess.size_divisor % COARSEST == 0
    _require(config, "preprocess.size_divisor", divisible, f"a multiple of {COARSEST}, the backbone's coarsest stride")
    channels = config.model.pyramid.channels
    groups = config.model.head.group_norm_groups
    divides = groups == 0 or channels % groups == 0
    _require(config, "model.head.group_norm_groups", divides, f"0, or a divisor of the pyramid's {channels} channels")
    anchors, rule = config.model.anchors, config.model.assignment
    _require(config, "model.anchors.ratios", all(r > 0 for r in anchors.ratios) and anchors.ratios != (), "positive")
    _require(config, "model.assignment.negative_iou", rule.negative_iou <= rule.positive_iou, "at most positive-iou")
    limits = len(rule.level_limits)
    enough = rule.method != "fcos" or limits >= config.model.pyramid.levels - 1
    _require(config, "model.assignment.level_limits", enough, "one less than pyramid levels, or more")
    coded = config.model.loss.box != "smooth_l1" or config.model.regression.start == "box"
    _require(config, "model.loss.box", coded, "giou or iou, where boxes are regressed from points")
    check_settings(config.model.backbone)
    _check_normalization(config)


def _check_normalization(config: Config) -> None:
    """Refuse ImageNet weights with the normalisation that belongs to the weights of other backbones."""
    backbone, own = config.model.backbone, entry_of(config.model.backbone).normalization
    pre = config.preprocess
    given = Normalization(pre.mean, pre.std, pre.pad_value)
    foreign = {entry.normalization[:2] for entry in BACKBONES.values()} - {own[:2]}
    if backbone.weights == "imagenet" and given[:2] in foreign:
        raise UserError(
            f"--preprocess.mean {_numbers(pre.mean)} --preprocess.std {_numbers(pre.std)}: that is what other "
            f"backbones' weights need; the ImageNet weights of {backbone.name} were trained with "
            f"{_numbers(own.mean)} and {_numbers(own.std)}"
        )


def _numbers(values: tuple[float, float, float]) -> str:
    return " ".join(f"{value:g}" for value in values)


def _value(config: Config, name: str) -> Any:
    return reduce(getattr, name.split("."), config)


def _require(config: Config, name: str, possible: bool, expected: str) -> None:
    if not possible:
        raise UserError(f"--{name.replace('_', '-')} {_value(config, name)} can't work: expected {expected}")
