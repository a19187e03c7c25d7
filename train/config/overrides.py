"""Settings that are changed by name, and what changes with them."""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Collection, Mapping
from dataclasses import asdict, fields, is_dataclass, replace
from functools import reduce
from typing import Any

from runtime.errors import UserError
from runtime.records import record_from_dict

from ..model.backbones import entry_of, missing_settings
from .schema import Config


def override(config: Config, settings: Mapping[str, Any]) -> Config:
    """The configuration with settings changed by name, such as {"schedule.steps": 1000}, as on the command line.

    A backbone that is exchanged brings its normalisation along, unless the normalisation is given too. Raises UserError
    for an unknown name, with the nearest one, and for a value of the wrong type.
    """
    known = setting_names(config)
    content = json.loads(json.dumps(asdict(config)))
    for name, value in settings.items():
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.3)
            raise UserError(f"no setting {name!r}" + (f", did you mean {near[0]!r}?" if near else ""))
        *groups, field = name.split(".")
        group = content
        for part in groups:
            group = group[part]
        group[field] = os.fspath(value) if isinstance(value, os.PathLike) else json.loads(json.dumps(value))
    changed = record_from_dict(Config, content, "settings")
    return settled(changed, config, settings)


def settled(config: Config, before: Config, given: Collection[str]) -> Config:
    """A configuration whose settings were changed, with what follows from the names of those that the user has `given`.

    `before` is the configuration before the changes. Raises UserError where two of them contradict each other.
    """
    return follow_backbone(one_length(one_source(config, given), given), before, given)


def one_length(config: Config, given: Collection[str]) -> Config:
    """The configuration with one length: steps that are given replace a recipe's epochs.

    Raises UserError where the user has `given` both, by their names; 0 epochs are none.
    """
    schedule = config.schedule
    if schedule.epochs <= 0 or "schedule.steps" not in given:
        return config
    if "schedule.epochs" in given:
        raise UserError(
            f"--schedule.epochs {schedule.epochs:g} and --schedule.steps {schedule.steps} both say how long the run "
            "is; give one of them"
        )
    return replace(config, schedule=replace(schedule, epochs=0.0))


def one_source(config: Config, given: Collection[str]) -> Config:
    """The configuration with one source of each data set: an annotation file that is given replaces a layout.

    Raises UserError where the user has `given` both, by their names.
    """
    data = config.data
    for name in ("train", "val"):
        files = (f"data.{name}_json", f"data.{name}_images")
        pair = [f for f in files if f in given and getattr(data, f.removeprefix("data."))]
        if not pair or not getattr(data, name):
            continue
        if f"data.{name}" in given:
            options = " and ".join(f"--{option.replace('_', '-')}" for option in (f"data.{name}", pair[0]))
            raise UserError(f"{options} both say where the images of {name} are; give one of them")
        data = replace(data, train="") if name == "train" else replace(data, val="")
    return replace(config, data=data)


def setting_names(record: Any, prefix: str = "") -> list[str]:
    """The names of all settings of a configuration, "model.backbone.name" and the like."""
    names = []
    for field in fields(record):
        value, name = getattr(record, field.name), prefix + field.name
        names += setting_names(value, name + ".") if is_dataclass(value) else [name]
    return names


def settings_by_name(config: Config) -> dict[str, str | int | float | bool]:
    """All settings of a configuration by the names of `setting_names`; a list is one text, parted by spaces."""
    values: dict[str, Any] = {name: reduce(getattr, name.split("."), config) for name in setting_names(config)}
    return {name: " ".join(map(str, value)) if isinstance(value, tuple) else value for name, value in values.items()}


def follow_backbone(config: Config, before: Config, given: Collection[str]) -> Config:
    """A configuration whose backbone was exchanged, with what belongs to the new one in place of the old one's.

    That is the normalisation, where it was the old backbone's own, and the settings that the new backbone doesn't have.
    `before` is the configuration with the old backbone. Settings that the user has `given`, by their names, stay.
    """
    if config.model.backbone.name == before.model.backbone.name:
        return config
    old, new = entry_of(before.model.backbone).normalization, entry_of(config.model.backbone).normalization
    own: dict[str, Any] = {
        name: value
        for name, value in new._asdict().items()
        if getattr(before.preprocess, name) == getattr(old, name) and f"preprocess.{name}" not in given
    }
    lacking = {
        name: neutral
        for name, neutral in missing_settings(config.model.backbone).items()
        if f"model.backbone.{name}" not in given
    }
    backbone = replace(config.model.backbone, **lacking)
    return replace(config, preprocess=replace(config.preprocess, **own), model=replace(config.model, backbone=backbone))
