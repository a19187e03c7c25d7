"""A run on another layout than COCO: the file that it writes, the run that it is, and who may write it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtime.coco import load_coco
from runtime.errors import UserError
from runtime.training_log import LOG, read_log
from tests.support.layout_writers import WRITERS
from train.__main__ import parse
from train.api import train
from train.checkpoint import read_checkpoint
from train.config import Config, Data
from train.config.overrides import override
from train.config.recipes import atss_tiny
from train.trainer.data_in_coco import data_in_coco
from train.trainer.distributed import ALONE
from train.trainer.loop import LAST
from train.trainer.start import TrainingError

Make = Callable[..., Config]
ROOT = Path(__file__).parents[3]


def by_name(path: Path) -> dict[str, Any]:
    """A COCO file's content with category ids in the order of the names, as layouts without ids have them."""
    content = json.loads(path.read_bytes())
    content["categories"].sort(key=lambda category: category["name"])
    ids = {category["id"]: number for number, category in enumerate(content["categories"], start=1)}
    for entry in content["annotations"]:
        entry["category_id"] = ids[entry["category_id"]]
    for category in content["categories"]:
        category["id"] = ids[category["id"]]
    return content


@pytest.fixture(scope="module")
def sources(shapes_set: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, str]]:
    """The drawn data set in each layout: the sources of training and validation."""
    found = {}
    for layout, write in WRITERS.items():
        out = tmp_path_factory.mktemp(layout)
        train, val = (
            write(by_name(shapes_set / f"{split}.json"), shapes_set / split, out / split, split)
            for split in ("train", "val")
        )
        found[layout] = train, val
    return found


def on(config: Config, train: str, val: str = "") -> Config:
    return replace(config, data=Data(train=train, val=val, workers=0))


@pytest.mark.parametrize("layout", WRITERS)
def test_a_run_takes_the_steps_of_the_same_data_in_coco(
    layout: str, sources: dict[str, tuple[str, str]], small_config: Make, shapes_set: Path, tmp_path: Path
) -> None:
    """The drawn boxes are whole pixels, so that even YOLO's six decimals give the same losses but for rounding."""
    (tmp_path / "train.json").write_text(json.dumps(by_name(shapes_set / "train.json")))
    config = small_config(steps=2)
    train(override(config, {"data.train_json": tmp_path / "train.json"}), out=tmp_path / "coco")
    result = train(on(config, *sources[layout]), out=tmp_path / layout)
    assert result.ap is not None
    losses = [
        [entry["total"] for entry in read_log(tmp_path / name / LOG) if entry["kind"] == "train"]
        for name in ("coco", layout)
    ]
    assert len(losses[0]) == 2
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-4)
    data = read_checkpoint(result.last).config.data
    assert (data.train, data.val) == sources[layout]
    assert Path(data.train_json) == tmp_path / layout / "data" / "train.json"
    written = load_coco(data.train_json, data.train_images)
    original = load_coco(shapes_set / "train.json", shapes_set / "train")
    assert len(written) == len(original)
    np.testing.assert_allclose(np.sort(written.boxes, 0), np.sort(original.boxes, 0), atol=1e-3)
    assert all(written.path(index).is_file() for index in range(len(written)))
    # The validation set has the classes of training under the same ids, and all of its own.
    val = load_coco(data.val_json, data.val_images)
    assert written.categories.items() <= val.categories.items()


def test_a_resumed_run_and_a_new_one_in_its_place(
    sources: dict[str, tuple[str, str]], small_config: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    config = on(small_config(steps=1), *sources["yolo"])
    first = train(config, out=out)
    written = (out / "data" / "train.json").stat()
    resumed = train(override(config, {"schedule.steps": 2}), out=out, resume=True)
    assert resumed.steps == 2
    assert (out / "data" / "train.json").stat().st_mtime_ns == written.st_mtime_ns, "the same data isn't written again"
    with pytest.raises(TrainingError, match="exists already: add --resume"):
        train(config, out=out)
    with pytest.raises(TrainingError, match="of a run on other data"):
        train(on(config, sources["voc"][0]), out=out)
    assert (out / "data" / "train.json").stat().st_mtime_ns == written.st_mtime_ns
    capsys.readouterr()
    # A checkpoint's configuration names the source and the file; training on it elsewhere reads the source again.
    again = train(read_checkpoint(first.last).config, out=tmp_path / "again")
    assert read_checkpoint(again.last).config.data.train_json == str(tmp_path / "again" / "data" / "train.json")


def test_data_that_changed_since_is_said(
    sources: dict[str, tuple[str, str]], small_config: Make, shapes_set: Path, tmp_path: Path, capsys: Any
) -> None:
    content = json.loads((shapes_set / "train.json").read_bytes())
    source = WRITERS["yolo"](content, shapes_set / "train", tmp_path / "set")
    config = on(small_config(steps=1), source)
    train(config, out=tmp_path / "run")
    labels = sorted((tmp_path / "set" / "labels" / "train").glob("*.txt"))
    labels[0].write_text("")
    train(override(config, {"schedule.steps": 2}), out=tmp_path / "run", resume=True)
    assert f"warning: {source}#train has changed since the run began" in capsys.readouterr().out


def test_coco_by_its_file_alone(small_config: Make, shapes_set: Path, tmp_path: Path) -> None:
    config = on(small_config(), f"coco:{shapes_set / 'train.json'}", str(shapes_set / "val.json"))
    data = data_in_coco(config, tmp_path, False, ALONE).data
    assert (data.train_json, data.train_images) == (str(shapes_set / "train.json"), str(shapes_set / "train"))
    assert (data.val_json, data.val_images) == (str(shapes_set / "val.json"), str(shapes_set / "val"))
    assert not (tmp_path / "data").exists()


def test_without_an_object_there_is_no_training(small_config: Make, shapes_set: Path, tmp_path: Path) -> None:
    """Label files of pixels, which YOLO's aren't: every line is dropped."""
    content = json.loads((shapes_set / "train.json").read_bytes())
    source = WRITERS["yolo"](content, shapes_set / "train", tmp_path / "set")
    for labels in (tmp_path / "set" / "labels" / "train").glob("*.txt"):
        labels.write_text("0 30 30 20 20\n")
    with pytest.raises(TrainingError, match=r"no image has an object to train on \(24 × line with a number outside"):
        train(on(small_config(), source), out=tmp_path / "run")
    assert not (tmp_path / "run" / "data").exists()


def test_what_is_no_runs_file_stays(sources: dict[str, tuple[str, str]], small_config: Make, tmp_path: Path) -> None:
    theirs = tmp_path / "data" / "train.json"
    theirs.parent.mkdir()
    theirs.write_text("{}")
    with pytest.raises(TrainingError, match="is there already and is no file of a run"):
        train(on(small_config(), sources["yolo"][0]), out=tmp_path)
    assert theirs.read_text() == "{}"


def test_the_same_images_in_both_sets_are_said(
    sources: dict[str, tuple[str, str]], small_config: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = sources["yolo"][0]
    data_in_coco(on(small_config(), source, f"{source}#train"), tmp_path, False, ALONE)
    assert f"warning: 24 images are in {source}#train and in {source}#train" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ({"data.train": "yolo:x", "data.train_json": "y"}, "--data.train and --data.train-json both say where"),
        ({"data.val": "yolo:x", "data.val_images": "y"}, "--data.val and --data.val-images both say where"),
    ],
)
def test_two_sources_of_one_set_are_refused(names: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        override(atss_tiny(), names)
    options = [word for name, value in names.items() for word in (f"--{name.replace('_', '-')}", value)]
    with pytest.raises(UserError, match=message):
        parse(["atss_tiny", "--out", "run", *options])


def test_a_file_that_is_given_replaces_a_layout() -> None:
    before = override(atss_tiny(), {"data.train": "yolo:x", "data.val": "yolo:x"})
    after = override(before, {"data.train_json": "y", "data.train_images": "z"})
    assert (after.data.train, after.data.train_json, after.data.val) == ("", "y", "yolo:x")
    config, _ = parse(["atss_tiny", "--out", "run", "--data.train", "voc:a b"])
    assert config.data.train == "voc:a b"


def test_processes_share_what_the_first_one_writes(
    sources: dict[str, tuple[str, str]], small_config: Make, tmp_path: Path
) -> None:
    config = on(small_config(steps=2, batch=2), *sources["createml"])
    (tmp_path / "settings.json").write_text(json.dumps(asdict(config)))
    code = (
        "import json, sys; from pathlib import Path; from runtime.records import record_from_dict;"
        "from train.config import Config; from train.api import train;"
        "train(record_from_dict(Config, json.loads(Path(sys.argv[1]).read_text()), 'test'), out=sys.argv[2])"
    )
    script = tmp_path / "start.py"
    script.write_text(code)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone", str(script)]
    done = subprocess.run(
        [*command, str(tmp_path / "settings.json"), str(tmp_path / "run")],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("in COCO's format in") == 2, "one line for each set, from one process"
    assert read_checkpoint(tmp_path / "run" / LAST).step == 2
