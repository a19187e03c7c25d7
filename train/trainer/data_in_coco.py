"""Training sets of other layouts become COCO files in the run's folder, which the run and its export then read."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from runtime.files import atomic_write

from ..config import Config
from ..layouts import COCO, LabeledSet, as_coco, find_image_folder, parse_source, read_source, with_categories
from .distributed import World, all_gather
from .progress import say
from .start import LAST, TrainingError

FOLDER = "data"  # in the folder of the run
_BEGIN = '{"info": {"description": "read from '  # of every file that a run writes there


def data_in_coco(config: Config, out: Path, resume: bool, world: World) -> Config:
    """The configuration with COCO files in the place of `data.train` and `data.val`; process 0 writes them to `out`.

    What was left out is printed. Raises UserError for data that cannot be read, TrainingError where nothing is left to
    train on, and where `out` holds a run on other data that is not to be resumed.
    """
    if not config.data.train and not config.data.val:
        return config
    found = _written(config, out, resume) if world.is_main else {}
    return replace(config, data=replace(config.data, **all_gather(found, world)[0]))


def _written(config: Config, out: Path, resume: bool) -> dict[str, str]:
    """Read both sets and write them; the settings that name them then."""
    settings: dict[str, str] = {}
    sets: dict[str, LabeledSet] = {}
    for name, given in (("train", config.data.train), ("val", config.data.val)):
        source = parse_source(given) if given else None
        if source is None:
            continue
        if source.layout == COCO:
            settings |= _settings(name, source.path, find_image_folder(source.path))
            continue
        labeled = read_source(source, name)
        if "train" in sets:  # an index of a class means the same in both, whatever classes each of them has
            labeled = with_categories(labeled, sets["train"].categories)
        sets[name] = labeled
    if "train" in sets and not sets["train"].object_count:
        lines = "; ".join(sets["train"].problems) or "no label names one"
        raise TrainingError(f"{config.data.train}: no image has an object to train on ({lines})")
    both = {image.path for labeled in sets.values() for image in labeled.images}
    twice = sum(len(labeled.images) for labeled in sets.values()) - len(both)
    if twice:
        train, val = (labeled.source for labeled in sets.values())
        say(f"warning: {twice} images are in {train} and in {val}: the AP will be too high")
    for name, labeled in sets.items():
        path = out / FOLDER / f"{name}.json"
        _write(path, labeled, out, resume)
        settings |= _settings(name, path, labeled.root)
    return settings


def _settings(name: str, annotations: Path, images: Path) -> dict[str, str]:
    return {f"{name}_json": str(annotations), f"{name}_images": str(images)}


def _write(path: Path, labeled: LabeledSet, out: Path, resume: bool) -> None:
    """Write a set, unless it is there already, and say what was left out of it."""
    text = json.dumps(as_coco(labeled))
    before = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else None
    if before != text:
        if before is not None and not before.startswith(_BEGIN):
            raise TrainingError(f"{path} is there already and is no file of a run; choose another --out")
        if before is not None and (out / LAST).exists():
            if not resume:
                raise TrainingError(
                    f"{out / LAST} exists already, of a run on other data: add --resume to the options of that run "
                    "to continue it on this data, or choose another --out"
                )
            say(f"warning: {labeled.source} has changed since the run began")
        atomic_write(path, text)
    counts = f"{len(labeled.images)} images, {labeled.object_count} objects, {len(labeled.categories)} classes"
    say(f"{labeled.source}: {counts}, in COCO's format in {path}")
    for problem in labeled.problems:
        say(f"warning: {labeled.source}: {problem}")
