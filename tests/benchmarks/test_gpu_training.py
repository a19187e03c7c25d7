"""benchmarks/gpu's steps of training and assignment: what they report, apart from times."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torchvision.models.detection import FCOS

from benchmarks.alternation import take_turns
from benchmarks.assignment_benchmark import scene, windowed
from benchmarks.gpu import assignment, criteria, training
from benchmarks.gpu.kernels import Work, largest, profile_of, sums
from benchmarks.gpu.step import Record
from benchmarks.step_benchmark import PRECISIONS, OurStep, random_backbone, random_batch, tf32, their_step
from train.assign import ASSIGNERS
from train.geometry.anchors import Anchors, pyramid_levels
from train.loss.criterion import Losses
from train.trainer.step_memory import LiveBytes

CPU = torch.device("cpu")
CANVAS = (64, 96)


@pytest.fixture
def record(tmp_path: Path) -> Record:
    return Record(tmp_path / "step.json", minutes=5)


def test_functions_take_turns_after_a_call_that_warms_up() -> None:
    calls: list[str] = []
    seconds = take_turns({name: partial(calls.append, name) for name in "AB"}, CPU, rounds=2, calls=2)
    assert "".join(calls) == "AB" + "AABB" * 2
    assert {name: len(values) for name, values in seconds.items()} == {"A": 2, "B": 2}
    assert take_turns({}, CPU, rounds=2) == {}


def test_without_time_each_function_still_has_a_figure() -> None:
    calls: list[str] = []
    seconds = take_turns({name: partial(calls.append, name) for name in "AB"}, CPU, rounds=9, limit_s=0)
    assert "".join(calls) == "ABAB"
    assert {name: len(values) for name, values in seconds.items()} == {"A": 1, "B": 1}


def test_tf32_is_as_before_afterwards_also_after_a_failure() -> None:
    switches = (torch.backends.cudnn, torch.backends.cuda.matmul)
    before = [switch.allow_tf32 for switch in switches]
    for allowed in (True, False):
        with contextlib.suppress(KeyError), tf32(allowed):
            assert [switch.allow_tf32 for switch in switches] == [allowed, allowed]
            raise KeyError
        assert [switch.allow_tf32 for switch in switches] == before


def test_the_longest_work_comes_first_and_the_rest_together() -> None:
    works = sums(
        [("a", Work(1, 3.0)), ("b", Work(1, 9.0)), ("a", Work(2, 4.0)), ("c", Work(1, 1.0)), ("d", Work(5, 2.0))]
    )
    assert list(largest(works, 2).items()) == [
        ("b", Work(1, 9.0)),
        ("a", Work(3, 7.0)),
        ("all others", Work(6, 3.0)),
    ]
    assert list(largest(works, 4)) == ["b", "a", "d", "c"]
    assert largest({}, 4) == {}


def test_operators_are_counted_by_call() -> None:
    one = torch.ones(3)
    found = profile_of(lambda: (one.sin(), one.sin(), one.exp()), CPU, calls=4)
    assert found.operators["aten::sin"].launches == 2
    assert found.operators["aten::exp"].launches == 1
    assert (found.kernels, found.launches, found.microseconds) == ({}, 0, 0)


def test_an_assignment_that_differs_is_reported(record: Record) -> None:
    levels = pyramid_levels((96, 128), 5, Anchors())
    boxes, mask = scene((96, 128), 3)
    expected = windowed(boxes, mask, levels)

    def wrong() -> Tensor:
        found = windowed(boxes, mask, levels)
        found[0, :2] = 7
        return found

    def broken() -> Tensor:
        raise RuntimeError("no kernel image")

    functions: dict[str, Callable[[], Tensor]] = {
        "windowed": partial(windowed, boxes, mask, levels),
        "wrong": wrong,
        "wrong, unstable": wrong,
        "broken": broken,
    }
    assignment.compare(record, functions, 3, expected, limit_s=0)
    rows = {row["method"]: row["anchors_that_differ_from_the_cpus"] for row in record.tables["assignment"]}
    assert rows == {"windowed": 0, "wrong": 2, "wrong, unstable": 2}
    assert list(record.failures) == ["assignment: broken, 3 boxes", "assignment: wrong, 3 boxes"]
    assert json.loads(record.path.read_text(encoding="utf-8"))["failures"] == record.failures
    assignment.compare(record, functions, 3, expected, limit_s=0)
    assert len(record.tables["assignment"]) == 3, "what is there isn't measured again"


def test_there_is_a_criterion_with_every_assigner() -> None:
    assert {model.assignment.method for model in criteria.CRITERIA.values()} == set(ASSIGNERS)
    sampling = {model.assignment.center_sampling for model in criteria.CRITERIA.values()}
    assert sampling == {"none", "radius", "nearest"}


def test_losses_that_differ_are_reported(record: Record, monkeypatch: pytest.MonkeyPatch) -> None:
    given = iter([1.0, 1.0 + 1e-5, 2.0, 2.1, 3.0, float("nan")])

    def numbers(*_: object) -> tuple[Losses, list[Tensor]]:
        value = torch.tensor(next(given))
        return Losses(value, value, value, value), [torch.ones(2)]

    monkeypatch.setattr(criteria, "CRITERIA", {"close": None, "far": None, "none": None})
    monkeypatch.setattr(criteria, "criterion_numbers", numbers)
    networks = iter([1.0, 1.1, 1.0, 1.1])  # of which only float64's must be equal
    monkeypatch.setattr(criteria, "network_numbers", lambda *_: numbers_of_a_network(next(networks)))
    criteria.compare_losses(record, CPU, CANVAS)
    assert [row["part"] for row in record.tables["losses against the CPU's"]] == [
        "criterion, close",
        "criterion, far",
        "criterion, none",
        "small network",
        "small network",
    ]
    failed = ["criterion, far, fp32", "criterion, none, fp32", "small network, fp64"]
    assert list(record.failures) == [f"losses against the CPU's: {part}" for part in failed]


def numbers_of_a_network(value: float) -> tuple[Losses, list[Tensor]]:
    total = torch.tensor(value)
    return Losses(total, total, total, total), [total]


def test_steps_take_turns_in_one_table_and_a_failing_one_is_left_out(record: Record) -> None:
    torch.manual_seed(0)
    images, targets = random_batch(1, CANVAS, CPU, boxes=2)
    backbone = random_backbone(images, "resnet18")
    given = (images, targets, PRECISIONS["fp32"], backbone)

    def broken() -> training.Step:
        raise torch.OutOfMemoryError("too large")

    builders: dict[str, Callable[[], training.Step]] = {
        "broken": broken,
        "ours": partial(OurStep, *given),
        "FCOS": partial(their_step, FCOS, *given),
    }
    conditions = {"batch": 1, "precision": "fp32"}
    for _ in range(2):
        training.compare_steps(record, "steps", builders, conditions, images, limit_s=0)
    ours, theirs = record.tables["steps"]
    assert (ours["detector"], theirs["detector"], ours["times_the_first"]) == ("ours", "FCOS", 1)
    assert 0 < ours["assignment_and_losses"] < 1
    assert "assignment_and_losses" not in theirs
    assert "predicted_memory_gb" not in theirs
    assert list(record.failures) == ["steps: broken, batch 1, precision fp32"]


def test_the_memory_predicted_for_a_step_is_what_the_step_takes(
    record: Record, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, targets = random_batch(2, CANVAS, CPU, boxes=2)
    build = partial(OurStep, images, targets, PRECISIONS["fp32"], random_backbone(images, "resnet18"))
    training.compare_steps(record, "steps", {"ours": build}, {"batch": 2}, images, limit_s=0)
    live = LiveBytes()
    with live:
        step = build()
        for tensor in (images, *targets):
            live.add(tensor)
        step()  # makes the optimizer's state
        live.peak = live.now
        step()
    assert 1e9 * record.tables["steps"][0]["predicted_memory_gb"] == pytest.approx(live.peak, rel=0.05)

    def fails(step: OurStep) -> int:
        raise RuntimeError("no numbers")

    monkeypatch.setattr(OurStep, "predicted_bytes", fails)
    training.compare_steps(record, "steps", {"ours": build}, {"batch": 1}, images[:1], limit_s=0)
    assert record.tables["steps"][1]["images_per_s"] > 0
    assert list(record.failures) == ["memory predicted for steps: ours, batch 1"]


@pytest.mark.slow
def test_compiled_steps_stand_beside_the_plain_one(record: Record) -> None:
    """With the compiler's front end alone; machine code is a GPU's matter."""
    torch.manual_seed(0)
    images, targets = random_batch(1, CANVAS, CPU, boxes=2)
    training.compile_step(record, images, targets, "fp32", random_backbone(images, "resnet18"), 0, "aot_eager")
    torch.compiler.reset()
    tables = {name: [row.get("detector") for row in rows] for name, rows in record.tables.items()}
    assert tables == {
        "compiled steps": ["plain", "compiled, dynamic canvas"],
        "another canvas": [None],
        "compiler": [None, None],
        "compiled steps, fixed canvas": ["plain", "compiled, fixed canvas, CUDA graph"],
    }
    losses = [row["loss"] for row in record.tables["compiled steps"]]
    assert losses[1] == pytest.approx(losses[0], rel=0.05)
    assert record.failures == {}
