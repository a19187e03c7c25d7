"""A training run as a report shows it: curves from its log, settings from its checkpoint, which run made a model."""

from __future__ import annotations

import pickletools
import statistics
import struct
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..files import sha256_file
from ..json_file import parse_json
from ..training_log import LOG, read_log
from .content import RunContent, Series

CHECKPOINTS = ("best.pt", "last.pt")
LOSSES = ("total", "classification", "box", "centerness")
METRICS = ("AP", "AP50", "AP75")
PLACES = (".", "train", "..")  # of the run's folder, seen from the model's
MOST_PICKLE_BYTES = 1 << 26  # of the part of a checkpoint that has the settings; the tensors lie in other parts


class SettingsError(UserError):
    """A checkpoint whose settings cannot be read."""


def find_run(model: Path, checkpoint_sha256: str) -> Path | None:
    """The folder of the training run that a model was made in, where it lies beside the model; else None.

    A folder counts only where one of its checkpoints has the SHA-256 that the model's manifest names.
    """
    for place in PLACES:
        folder = model.parent / place
        if (folder / LOG).is_file() and matching_checkpoint(folder, checkpoint_sha256) is not None:
            return folder.resolve() if place == ".." else folder
    return None


def matching_checkpoint(folder: Path, checkpoint_sha256: str) -> Path | None:
    """The checkpoint in the folder of a run that has this SHA-256."""
    files = (folder / name for name in CHECKPOINTS)
    return next((path for path in files if path.is_file() and sha256_file(path) == checkpoint_sha256), None)


def read_run(folder: Path, checkpoint_sha256: str | None = None) -> RunContent:
    """The run in a folder, as its log and checkpoint have it.

    `checkpoint_sha256` is the manifest's of a model; the facts then say whether this run made it. Raises UserError
    where the folder has no log, and LogError for a log that cannot be read. Settings that cannot be read are left out,
    and the facts say why.
    """
    if not (folder / LOG).is_file():
        raise UserError(f"{folder}: no {LOG} there; give the --out folder of a training run")
    lines = read_log(folder / LOG)
    steps = [line for line in lines if line["kind"] == "train"]
    evaluations = [line for line in lines if line["kind"] == "val"]
    facts = {"log": f"{len(steps)} lines of training, {len(evaluations)} evaluations"}
    if lines:
        facts["last step"] = str(max(line["step"] for line in lines))
    stops = [line for line in lines if line["kind"] == "stop"]
    if stops and stops[-1]["step"] == max(line["step"] for line in lines):  # else it was resumed with more patience
        since = _number(stops[-1], "evaluations_since")
        facts["early stopping"] = f"at step {stops[-1]['step']}" + (
            ""
            if since is None
            else f", after {since:g} {'evaluation' if since == 1 else 'evaluations'} without a better AP"
        )
    if measured := [line for line in evaluations if _number(line, "AP") is not None]:
        whole = [line for line in measured if not line.get("limit")]  # few images tend to have a higher AP
        best = max(whole or measured, key=lambda line: line["AP"])
        part = "" if whole else f", on the first {best['limit']} images"
        facts["best AP in training"] = f"{100 * best['AP']:.1f} at step {best['step']}{part}"
    if speeds := [speed for line in steps if (speed := _number(line, "images_per_second")) is not None]:
        facts["training speed"] = f"{statistics.median(speeds):.1f} images/s, median of the log"
    made_by = None if checkpoint_sha256 is None else matching_checkpoint(folder, checkpoint_sha256)
    if checkpoint_sha256 is not None:
        facts["model"] = (
            "made from none of this run's checkpoints: their SHA-256 is not the one in the manifest"
            if made_by is None
            else f"made from {made_by.name}: the SHA-256 is the one in the manifest"
        )
    settings: Mapping[str, Any] = {}
    checkpoint = made_by or next((path for name in CHECKPOINTS if (path := folder / name).is_file()), None)
    if checkpoint is None:
        facts["settings"] = "unknown: the folder has no checkpoint"
    else:
        try:
            settings = read_settings(checkpoint)
            facts["settings"] = f"of {checkpoint.name}"
        except SettingsError as error:
            facts["settings"] = f"unknown: {error}"
    return RunContent(str(folder), _series(steps, LOSSES), _series(evaluations, METRICS), settings, facts)


def _number(line: Mapping[str, Any], name: str) -> float | None:
    """A measured number of a log's line: None for a missing one, and for the −1 of a metric without objects."""
    value = line.get(name)
    return None if value is None or not 0 <= value < float("inf") else float(value)


def _series(lines: Sequence[Mapping[str, Any]], names: Sequence[str]) -> tuple[Series, ...]:
    found = []
    for name in names:
        points = [(line["step"], value) for line in lines if (value := _number(line, name)) is not None]
        if points:
            found.append(Series(name, [step for step, _ in points], [value for _, value in points]))
    return tuple(found)


def read_settings(checkpoint: Path) -> dict[str, Any]:
    """The configuration in a checkpoint of this toolkit, nested as JSON has it. Needs no torch.

    Nothing is unpickled: the pickle's instructions are only read, up to the text that follows the name "config".
    Raises SettingsError for a file that isn't such a checkpoint, or is damaged.
    """
    try:
        text = _config_text(checkpoint)
    # What zipfile, struct and pickletools raise for a damaged file. NotImplementedError: an unknown compression.
    except (OSError, EOFError, ValueError, RuntimeError, zipfile.BadZipFile, struct.error) as error:
        raise SettingsError(f"{checkpoint} cannot be read as a checkpoint ({error})") from error
    if text is None:
        raise SettingsError(f"{checkpoint} has no configuration: it is no checkpoint of this toolkit")
    try:
        settings = parse_json(text, f"{checkpoint}: its configuration")
    except UserError as error:
        raise SettingsError(str(error)) from error
    if not isinstance(settings, dict):
        raise SettingsError(f"{checkpoint}: its configuration is no JSON object")
    return settings


def _config_text(checkpoint: Path) -> str | None:
    with zipfile.ZipFile(checkpoint) as archive:
        entry = next((entry for entry in archive.infolist() if entry.filename.endswith("/data.pkl")), None)
        if entry is None:
            return None
        if entry.compress_type != zipfile.ZIP_STORED or entry.file_size > MOST_PICKLE_BYTES:
            raise ValueError(f"its entry {entry.filename!r} is compressed or too large")
        content = archive.read(entry)
    follows = False
    for opcode, value, _ in pickletools.genops(content):
        if isinstance(value, str) and "UNICODE" in opcode.name:
            if follows:
                return value
            follows = value == "config"
    return None
