"""Settings that can't work are refused by the name of their option, before anything is loaded."""

from __future__ import annotations

from functools import reduce

from runtime.bounds import shortened
from runtime.errors import UserError
from runtime.records import RecordError, check_record

from ..model.backbones import BACKBONES, Normalization, check_settings, entry_of
from .schema import Config


def check_config(config: Config) -> None:
    """Raise UserError, naming the option, where a setting can't work.

    The bounds of the settings are declared beside their types. Here is what concerns training alone.
    """
    try:
        check_record(config, "the configuration")
    except RecordError as error:
        if not error.name:
            raise
        raise _impossible(config, error.name.split("[")[0], error.expected) from error
    # Of a 3×3 convolution of stride 2 on a single cell, oneDNN leaves the bf16 weight gradient unset (torch 2.14, CPU).
    single_cell = 0 < max(config.augment.crop) <= 8 << (config.model.pyramid.levels - 2)
    if single_cell and config.run.precision != "fp32":
        larger = f"a larger crop for {config.model.pyramid.levels} pyramid levels, or --run.precision fp32"
        raise _impossible(config, "augment.crop", larger)
    _check_patience(config)
    check_settings(config.model.backbone)
    _check_normalization(config)


def _check_patience(config: Config) -> None:
    """Refuse early stopping without comparable evaluations."""
    if not config.schedule.patience:
        return
    if not (config.data.val_json or config.data.val):
        needed = "0, since there is no validation set to measure AP on (--data.val-json and --data.val-images)"
        raise _impossible(config, "schedule.patience", needed)
    if config.run.evaluate_limit:
        raise _impossible(config, "run.evaluate_limit", "0 (the whole validation set) with --schedule.patience")


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


def _impossible(config: Config, name: str, expected: str) -> UserError:
    value = shortened(str(reduce(getattr, name.split("."), config)))
    return UserError(f"--{name.replace('_', '-')} {value} can't work: expected {expected.replace('_', '-')}")
