"""Checkpoints come back as they were; anything else is refused in one line and never executed."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import pickle
import re
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from runtime.errors import UserError
from runtime.files import sha256_file
from runtime.records import record_from_dict
from train.build import build_detector
from train.checkpoint import Checkpoint, CheckpointError, Classes, load_detector, read_checkpoint, save_checkpoint
from train.config import Config
from train.config.recipes import RECIPES
from train.integrity import tensors_sha256
from train.trainer.optim import build_optimizer

CLASSES = Classes(("cat", "dog"), (3, 17))


class Malicious:
    """Unpickling this makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.mkdir, (str(self.path),)


@pytest.fixture
def checkpoint(small_config: Callable[..., Config]) -> Checkpoint:
    settings = small_config()
    torch.manual_seed(3)
    detector = build_detector(settings.model, 2, settings.preprocess)
    averaged = {k: v + 1 if v.is_floating_point() else v for k, v in detector.state_dict().items()}
    optimizer = build_optimizer(detector, settings.schedule)
    return Checkpoint(settings, CLASSES, 7, detector.state_dict(), averaged, optimizer.state_dict(), {}, 0.25, 0.5)


def refusal(path: Path, read: Callable[[Path], Any] = read_checkpoint) -> str:
    with pytest.raises(UserError) as caught:
        read(path)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    return message


def test_round_trip(checkpoint: Checkpoint, tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "last.pt"
    save_checkpoint(path, checkpoint)
    back = read_checkpoint(path)
    for name in ("config", "classes", "step", "ap", "best_ap", "scaler"):
        assert getattr(back, name) == getattr(checkpoint, name)
    for ours, theirs in ((back.model, checkpoint.model), (back.averaged, checkpoint.averaged)):
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[k], theirs[k]) for k in ours)
    assert back.optimizer["param_groups"] == checkpoint.optimizer["param_groups"]
    assert [p.name for p in path.parent.iterdir()] == ["last.pt"], "no temporary file stays"


def test_the_detector_has_the_averaged_weights_and_is_ready_to_run(checkpoint: Checkpoint, tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "a.pt", checkpoint)
    loaded = load_detector(tmp_path / "a.pt")
    assert not loaded.detector.training
    assert torch.equal(loaded.detector.head.scales, checkpoint.model["head.scales"] + 1)
    assert (loaded.step, loaded.ap, loaded.classes) == (7, 0.25, CLASSES)
    assert loaded.sha256 == sha256_file(tmp_path / "a.pt")
    save_checkpoint(tmp_path / "b.pt", checkpoint._replace(averaged=None))
    assert torch.equal(load_detector(tmp_path / "b.pt").detector.head.scales, checkpoint.model["head.scales"])


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_configurations_survive_json(name: str) -> None:
    recipe = RECIPES[name]()
    assert record_from_dict(Config, json.loads(json.dumps(asdict(recipe))), "test") == recipe


def test_missing_and_damaged_files(checkpoint: Checkpoint, tmp_path: Path) -> None:
    assert "no checkpoint at" in refusal(tmp_path / "none.pt")
    assert "no checkpoint at" in refusal(tmp_path)
    path = tmp_path / "a.pt"
    save_checkpoint(path, checkpoint)
    whole = path.read_bytes()
    for size in (0, 1, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        assert "can't be read as a checkpoint" in refusal(path), size
    path.write_bytes(b"\x80" * 5000)
    assert "can't be read as a checkpoint" in refusal(path)


def test_foreign_files(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    for content in ({"weight": torch.zeros(3)}, [1, 2], torch.zeros(2)):
        torch.save(content, path)
        assert "no checkpoint of this toolkit" in refusal(path)


@pytest.mark.parametrize("as_zip", [True, False])
def test_a_malicious_file_is_not_executed(as_zip: bool, tmp_path: Path) -> None:
    path = tmp_path / "evil.pt"
    torch.save({"format": Malicious(tmp_path / "ran")}, path, _use_new_zipfile_serialization=as_zip)
    assert "can't be read as a checkpoint" in refusal(path)
    path.write_bytes(pickle.dumps(Malicious(tmp_path / "ran")))
    assert "can't be read as a checkpoint" in refusal(path)
    assert not (tmp_path / "ran").exists()
    pickle.loads(path.read_bytes())
    assert (tmp_path / "ran").exists(), "the file would have done it"


def edited(checkpoint: Checkpoint, path: Path, **changes: Any) -> Path:
    """A checkpoint file with entries changed, or removed where the value is None."""
    save_checkpoint(path, checkpoint)
    content = torch.load(path, weights_only=True)
    content |= changes
    torch.save({k: v for k, v in content.items() if v is not None or k not in changes}, path)
    return path


def test_another_version(checkpoint: Checkpoint, tmp_path: Path) -> None:
    message = refusal(edited(checkpoint, tmp_path / "a.pt", version=2))
    assert "version 2" in message
    assert "reads version 1" in message


@pytest.mark.parametrize("entry", ["step", "model", "config", "classes", "optimizer", "best_ap"])
def test_missing_entries(entry: str, checkpoint: Checkpoint, tmp_path: Path) -> None:
    assert entry in refusal(edited(checkpoint, tmp_path / "a.pt", **{entry: None}))


def test_a_configuration_that_is_not_one(checkpoint: Checkpoint, tmp_path: Path) -> None:
    settings = asdict(checkpoint.config)
    settings["schedule"]["speed"] = 3
    assert "schedule.speed" in refusal(edited(checkpoint, tmp_path / "a.pt", config=json.dumps(settings)))
    assert "its configuration is not JSON" in refusal(edited(checkpoint, tmp_path / "a.pt", config="{"))
    assert "nested too deeply" in refusal(edited(checkpoint, tmp_path / "a.pt", config="[" * 100_000))
    assert "incomplete" in refusal(edited(checkpoint, tmp_path / "a.pt", config=5))


def test_a_checkpoint_from_before_compiled_losses_loads(checkpoint: Checkpoint, tmp_path: Path) -> None:
    settings = asdict(checkpoint.config)
    del settings["run"]["compile_loss"]
    path = edited(checkpoint, tmp_path / "a.pt", config=json.dumps(settings))
    assert read_checkpoint(path).config == checkpoint.config


@pytest.mark.parametrize("entry", ["step", "model", "averaged", "optimizer", "ap", "classes", "config"])
def test_entries_of_a_wrong_type(entry: str, checkpoint: Checkpoint, tmp_path: Path) -> None:
    refusal(edited(checkpoint, tmp_path / "a.pt", **{entry: "x" if entry != "classes" else 5}), load_detector)


@pytest.mark.parametrize(
    ("entry", "value", "message"),
    [
        ("version", torch.tensor([1, 2]), "checkpoint version"),
        ("version", True, "checkpoint version True"),
        ("step", -5, "field 'step' is a number .-5., expected at least 0"),
        ("step", 10**400, "field 'step' is a number .1000+ …., expected"),
        ("step", torch.tensor(3), "field 'step' is Tensor, expected int"),
        ("ap", 7.0, "field 'ap' is a number .7.0."),
        ("ap", float("nan"), "field 'ap' is a number .nan."),
        ("best_ap", -2.0, "field 'best_ap' is a number"),
        ("classes", [1, 2], "field 'classes.0.' is a number"),
        ("classes", ["cat"], "field 'category_ids' is a list .3, 17., expected as many ids as classes, here 1"),
        ("classes", ["cat", "\x1b[2J"], r"field 'classes.1.' is a text .'\\x1b.2J'., expected .* control"),
        ("category_ids", [3, 3], "distinct"),
        ("category_ids", [3, 10**30], "field 'category_ids.1.'"),
        ("optimizer", {"a": [float("inf")]}, "optimizer/a/0 has numbers that are not finite"),
        ("model", {"a": torch.zeros(2, device="meta")}, "model/a is a tensor of a kind that no checkpoint has"),
        ("model", {"a": torch.zeros(1).expand(10**15)}, "model/a is a tensor of a kind that no checkpoint has"),
        ("sha256", 3, "sha256 is a number"),
        ("sha256", {"model": "0" * 64}, "the numbers of 'model' are not those that were saved"),
    ],
)
def test_entries_without_sense(entry: str, value: Any, message: str, checkpoint: Checkpoint, tmp_path: Path) -> None:
    assert re.search(message, refusal(edited(checkpoint, tmp_path / "a.pt", **{"sha256": None, entry: value})))


def test_values_nested_without_end(checkpoint: Checkpoint, tmp_path: Path) -> None:
    many: list = []
    for _ in range(60):
        many = [many, many]
    assert "more than 1000000 values" in refusal(
        edited(checkpoint, tmp_path / "a.pt", sha256=None, optimizer={"a": many})
    )


@pytest.mark.parametrize("part", ["model", "averaged", "optimizer"])
def test_a_number_that_changed_is_noticed(part: str, checkpoint: Checkpoint, tmp_path: Path) -> None:
    """Whoever changes it: the hash lies in the file itself."""
    path = tmp_path / "a.pt"
    state = {"state": {0: {"exp_avg": torch.ones(3)}}} if part == "optimizer" else getattr(checkpoint, part)
    save_checkpoint(path, checkpoint._replace(**{part: state}))
    content = torch.load(path, weights_only=True)
    tensor = content[part]["state"][0]["exp_avg"] if part == "optimizer" else content[part]["head.scales"]
    tensor.view(-1)[-1] += 2**-20
    torch.save(content, path)
    assert f"the numbers of '{part}' are not those that were saved" in refusal(path)
    torch.save({**content, "sha256": None} | {part: content[part]}, path)
    assert "sha256 is null" in refusal(path)
    del content["sha256"]
    torch.save(content, path)
    read_checkpoint(path)  # a file from before the hashes


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("part", ["model", "averaged", "optimizer"])
def test_weights_that_are_not_finite(part: str, value: float, checkpoint: Checkpoint, tmp_path: Path) -> None:
    state = {"a": {"b": torch.tensor([1.0, value])}}
    save_checkpoint(tmp_path / "a.pt", checkpoint._replace(**{part: state}))
    assert f"{part}/a/b has numbers that are not finite" in refusal(tmp_path / "a.pt")


def test_a_file_without_the_optimizers_state_opens(checkpoint: Checkpoint, tmp_path: Path) -> None:
    assert read_checkpoint(edited(checkpoint, tmp_path / "a.pt", optimizer={})).optimizer == {}


def test_any_flipped_bit_is_noticed_or_harmless(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """Without the hashes too: zip archives have checksums. The bytes between entries carry nothing."""
    path = edited(checkpoint, tmp_path / "a.pt", sha256=None)
    whole, expected = path.read_bytes(), read_checkpoint(path)
    random = np.random.default_rng(0)
    refused = 0
    for place in random.integers(0, len(whole), 150):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << random.integers(0, 8)
        path.write_bytes(damaged)
        found = None
        with contextlib.suppress(CheckpointError):
            found = read_checkpoint(path)
        if found is None:
            assert "\n" not in refusal(path)
            refused += 1
            continue
        assert (found.config, found.classes, found.step) == (expected.config, expected.classes, expected.step)
        assert all(torch.equal(found.model[name], tensor) for name, tensor in expected.model.items())
    assert refused > 100


def test_the_hash_knows_names_types_shapes_and_order() -> None:
    base = {"a": torch.arange(6.0).reshape(2, 3), "b": [1, (2.5, None)]}
    known = tensors_sha256(base)
    assert tensors_sha256({"a": torch.arange(6.0).reshape(2, 3).t().contiguous().t(), "b": [1, (2.5, None)]}) == known
    others = [
        {"c": base["a"], "b": base["b"]},
        {"a": base["a"].reshape(3, 2), "b": base["b"]},
        {"a": base["a"].view(torch.int32), "b": base["b"]},
        {"a": base["a"], "b": [1, (2.5, 0)]},
        {"a": base["a"]},
        {},
    ]
    assert len({known, *map(tensors_sha256, others)}) == len(others) + 1
    assert tensors_sha256({"a": torch.ones(3, dtype=torch.bfloat16), "b": torch.tensor(3)})


def test_weights_that_do_not_fit(checkpoint: Checkpoint, tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    state = checkpoint.averaged
    for wrong in (
        {k: v for k, v in state.items() if k != "head.scales"},
        state | {"extra": torch.zeros(1)},
        state | {"head.scales": torch.zeros(9)},
        state | {"head.scales": "text"},
    ):
        save_checkpoint(path, checkpoint._replace(averaged=wrong))
        assert "don't fit" in refusal(path, load_detector)
    other = replace(
        checkpoint.config,
        model=replace(checkpoint.config.model, pyramid=type(checkpoint.config.model.pyramid)(channels=32)),
    )
    save_checkpoint(path, checkpoint._replace(config=other))
    assert "don't fit" in refusal(path, load_detector)


def test_a_full_disk_leaves_the_former_file(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "last.pt"
    save_checkpoint(path, checkpoint)
    before = path.read_bytes()

    def full(*args: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="No space left on device") as caught:
        save_checkpoint(path, checkpoint._replace(step=8))
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["last.pt"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
def test_a_disk_that_fills_while_writing(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch writes through the file it is given; every write to /dev/full fails as on a full disk."""
    path = tmp_path / "last.pt"
    save_checkpoint(path, checkpoint)
    before = path.read_bytes()
    monkeypatch.setattr("builtins.open", lambda name, mode, _open=open, **how: _open("/dev/full", mode, **how))
    with pytest.raises(UserError, match="No space left on device"):
        save_checkpoint(path, checkpoint._replace(step=8))
    assert path.read_bytes() == before
