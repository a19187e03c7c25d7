"""The speed part of the ONNX Runtime step: its order, what it leaves to other parts, and how many sessions it holds."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.gpu import ort_speed
from benchmarks.gpu.model_files import REHEARSAL, Files
from benchmarks.gpu.onnxruntime_cuda import BATCHES
from benchmarks.gpu.ort_speed import MAIN, VARIANTS, Setting, falling, speed
from benchmarks.gpu.step import Record

FILES = ("fp32 gpu", "fp32 cpu", "fp32 gpu, split norms", "fp16 gpu", "fp16 cpu", "int8 gpu", "int8 cpu")
PRECISIONS = ("fp32", "TF32", "autocast")


class World:
    """Sessions that only count: which are open, and the largest batch that each has run."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.open: weakref.WeakSet[Session] = weakref.WeakSet()
        self.most_open = 0
        theirs = {
            f"torchvision {kind}, {precision}": None for kind in ("fcos", "retinanet") for precision in PRECISIONS
        }
        monkeypatch.setattr(ort_speed, "torchvision_sides", lambda setting, images: theirs)
        monkeypatch.setattr(ort_speed, "open_raw", lambda path, backend, options: Session(self, path))
        monkeypatch.setattr(ort_speed, "open_backend", lambda path, **_: Session(self, path))
        monkeypatch.setattr(ort_speed, "network_file", lambda path: path)
        monkeypatch.setattr(ort_speed, "photographs", lambda _, batch, height, width: np.zeros((batch, 1, 1, 3)))
        monkeypatch.setattr(ort_speed, "sides_of", self.sides_of)

    def sides_of(self, setting: Setting, raw: dict, backends: dict, theirs: dict, images: np.ndarray) -> dict[str, Any]:
        ours = {name: lambda one=one: one.run(len(images)) for name, one in (raw | backends).items()}
        return ours | {name: lambda: 0 for name in theirs}


class Session:
    """It refuses a larger batch than its first: the memory of both would stay allocated."""

    def __init__(self, world: World, path: Path) -> None:
        self.world, self.path, self.first = world, path, 0
        world.open.add(self)
        world.most_open = max(world.most_open, len(world.open))

    def run(self, batch: int) -> int:
        self.first = self.first or batch
        assert batch <= self.first
        return 0

    def close(self) -> None:
        """Nothing is left to free."""


def setting_of(folder: Path) -> Setting:
    return Setting(folder, REHEARSAL, "cpu", "cpu", BATCHES, 2)


def files_of(folder: Path) -> Files:
    return Files({name: folder / f"{name}.onnx" for name in FILES}, {})


def test_batches_fall_within_a_run() -> None:
    assert falling(BATCHES) == [[8, 1], [16, 4, 2]]
    assert falling([]) == []
    assert falling([1, 2, 2, 1]) == [[1], [2, 2, 1]]


def test_every_group_at_every_batch_with_few_sessions_at_a_time(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    world = World(monkeypatch)
    record = Record(tmp_path / "step.json", 60)
    for groups in (MAIN, VARIANTS):
        speed(record, setting_of(tmp_path), files_of(tmp_path), groups)
    assert not record.failures
    assert not record.not_run
    rows = record.tables["speed"]
    wanted = {(name, batch) for name, group in (MAIN | VARIANTS).items() for batch in BATCHES if batch <= group.most}
    assert {(row["group"], row["batch"]) for row in rows} == wanted
    # fp16, TF32 and int8 come before float32, whose memory is the largest, and all before the variants.
    assert list(dict.fromkeys(row["group"] for row in rows)) == [*MAIN, *VARIANTS]
    assert list(MAIN)[:3] == ["fp16", "TF32", "int8"]
    assert world.most_open <= 2
    assert all(len(group.ours) == 1 for name, group in MAIN.items() if name.startswith("fp32"))
    count = len(rows)
    speed(record, setting_of(tmp_path), files_of(tmp_path), MAIN)  # again: nothing is measured twice
    assert len(record.tables["speed"]) == count


def test_ratios_are_to_torchvision_or_to_the_groups_first_side(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    World(monkeypatch)
    record = Record(tmp_path / "step.json", 60)
    some = {"int8": MAIN["int8"], "fp16, NHWC": VARIANTS["fp16, NHWC"]}
    speed(record, setting_of(tmp_path), files_of(tmp_path), some)
    found = {row["side"]: {name for name in row if name.startswith("×")} for row in record.tables["speed"]}
    theirs = ("torchvision fcos, autocast", "torchvision retinanet, autocast")
    assert found == {
        "int8 gpu: graph": {f"× {name}" for name in theirs},
        **{name: set() for name in theirs},
        "fp16 gpu: graph": set(),
        "fp16 gpu, NHWC: graph": {"× fp16 gpu: graph"},
    }


def test_time_is_left_to_other_parts_and_what_was_left_out_is_measured_later(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    World(monkeypatch)
    record = Record(tmp_path / "step.json", 10)
    few = {"fp16": MAIN["fp16"]}
    speed(record, setting_of(tmp_path), files_of(tmp_path), few, keep_s=590)
    assert "speed" not in record.tables
    assert set(record.not_run) == {f"speed of fp16, batch {batch}" for batch in BATCHES}
    assert record.cut
    speed(record, setting_of(tmp_path), files_of(tmp_path), few)
    assert {row["batch"] for row in record.tables["speed"]} == set(BATCHES)
    assert not record.not_run


def test_a_session_that_does_not_open_leaves_the_others(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    World(monkeypatch)

    def refuse(*_: Any, **__: Any) -> None:
        raise RuntimeError("no memory")

    monkeypatch.setattr(ort_speed, "open_backend", refuse)
    record = Record(tmp_path / "step.json", 60)
    speed(
        record, setting_of(tmp_path), files_of(tmp_path), {"fp16": MAIN["fp16"], "fp32, backend": MAIN["fp32, backend"]}
    )
    assert {row["side"] for row in record.tables["speed"] if row["side"].startswith("fp")} == {"fp16 gpu: graph"}
    assert set(record.failures) == {"opening fp16 gpu: backend", "opening fp32 gpu: backend"}
