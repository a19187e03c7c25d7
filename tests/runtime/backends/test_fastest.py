"""Which of two backends is faster: measured in time, and remembered in a file that may be damaged."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtime.backends import BackendError
from runtime.backends.fastest import (
    BUDGET_S,
    MARGIN,
    MOST_ROUNDS,
    Machine,
    Verdict,
    cache_folder,
    compare_speed,
    describe_machine,
    recall,
    remember,
)

from ...support.fakes import MANIFEST
from ...support.timed import Clock, Timed

RIVALS = ("openvino", "cpu")
MACHINE = Machine("0" * 64, {"onnxruntime": "1", "openvino": "2"}, "a processor", 2, 0)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ATSS_TOOLKIT_CACHE", str(tmp_path / "cache"))
    return cache_folder()


def verdict(openvino: float, cpu: float) -> Verdict:
    return Verdict(MACHINE, {"openvino": openvino, "cpu": cpu}, MOST_ROUNDS)


@pytest.mark.parametrize(
    ("openvino", "cpu", "chosen", "text"),
    [
        (10, 20, "openvino", "faster than cpu by 2.00 x here, measured"),
        (20, 10, "cpu", "faster than openvino by 2.00 x here, measured"),
        (10, 10, "openvino", "as fast as cpu here, measured"),
        (10 * MARGIN - 0.01, 10, "openvino", "as fast as cpu here, measured"),
        (10 * MARGIN, 10, "cpu", "faster than openvino by 1.05 x here, measured"),
        (10, 10.1, "openvino", "as fast as cpu here, measured"),
    ],
)
def test_the_faster_is_chosen_and_noise_does_not_choose(openvino: float, cpu: float, chosen: str, text: str) -> None:
    assert verdict(openvino, cpu).chosen == chosen
    assert str(verdict(openvino, cpu)) == text


def test_the_first_call_and_an_interruption_do_not_count() -> None:
    clock = Clock()
    slow_start = Timed(clock, 0.8, 0.03, 0.02, 0.7, 0.02)
    backends = {"openvino": Timed(clock, 0.1, 0.01), "cpu": slow_start}
    found, failed = compare_speed(backends, MACHINE, clock)
    assert failed == {}
    assert found is not None
    assert found.milliseconds == pytest.approx({"openvino": 10, "cpu": 20})


@pytest.mark.parametrize(("takes", "rounds"), [(0.001, MOST_ROUNDS), (0.2, 3), (0.4, 2), (7, 0)])
def test_measuring_ends_in_time(takes: float, rounds: int) -> None:
    clock = Clock()
    backends = {"openvino": Timed(clock, takes), "cpu": Timed(clock, takes)}
    found, _ = compare_speed(backends, MACHINE, clock)
    calls = [len(backend.batches) for backend in backends.values()]
    assert calls == [rounds + 1] * 2
    assert found is not None
    assert found.rounds == rounds
    assert clock.now <= BUDGET_S + 4 * takes + 1e-9


def test_first_calls_that_take_too_long_decide() -> None:
    clock = Clock()
    found, _ = compare_speed({"openvino": Timed(clock, 9.0), "cpu": Timed(clock, 6.0)}, MACHINE, clock)
    assert found is not None
    assert (found.chosen, found.rounds, clock.now) == ("cpu", 0, 15.0)
    assert str(found) == "faster than openvino by 1.50 x here, measured"


@pytest.mark.parametrize(
    ("cpu", "rounds", "lasts"), [(10, 3, True), (10, 2, False), (11.9, 2, False), (12, 2, True), (8.4, 0, False)]
)
def test_only_a_verdict_that_would_come_again_is_remembered(cpu: float, rounds: int, lasts: bool) -> None:
    remember(replace(verdict(10, cpu), rounds=rounds))
    assert (recall(MACHINE, RIVALS) is not None) == lasts


def test_the_batch_is_one_that_the_file_takes() -> None:
    clock = Clock()
    for shapes, expected in [
        (MANIFEST.inputs, (1, 256, 320, 3)),
        (replace(MANIFEST.inputs, batch_min=4, batch_max=4), (4, 256, 320, 3)),
        (replace(MANIFEST.inputs, height_min=416, height_max=416, width_min=96, width_max=96), (1, 416, 96, 3)),
    ]:
        backend = Timed(clock, 1.0)
        backend.manifest = replace(MANIFEST, inputs=shapes)
        compare_speed({"openvino": backend, "cpu": Timed(clock, 1.0)}, MACHINE, clock)
        assert set(backend.batches) == {expected}
    coarse = Timed(clock, 1.0)
    coarse.manifest = replace(MANIFEST, preprocess=replace(MANIFEST.preprocess, size_divisor=128))
    compare_speed({"openvino": coarse, "cpu": Timed(clock, 1.0)}, MACHINE, clock)
    assert set(coarse.batches) == {(1, 256, 384, 3)}


@pytest.mark.parametrize("takes", [(BackendError("no kernel"),), (0.1, BackendError("no kernel"))])
def test_a_backend_that_fails_is_named(takes: tuple[float | BackendError, ...]) -> None:
    clock = Clock()
    found, failed = compare_speed({"openvino": Timed(clock, *takes), "cpu": Timed(clock, 0.1)}, MACHINE, clock)
    assert found is None
    assert {name: str(error) for name, error in failed.items()} == {"openvino": "no kernel"}
    found, failed = compare_speed({"openvino": Timed(clock, 0.1), "cpu": Timed(clock, *takes)}, MACHINE, clock)
    assert found is None
    assert list(failed) == ["cpu"]


@pytest.mark.parametrize("score", [np.nan, np.inf])
def test_numbers_that_are_not_finite_are_a_failure(score: float) -> None:
    clock = Clock()
    backends = {"openvino": Timed(clock, 1.0), "cpu": Timed(clock, 0.1, score=score)}
    found, failed = compare_speed(backends, MACHINE, clock)
    assert found is None
    assert str(failed["cpu"]) == "its detections are not finite numbers"


def test_a_verdict_is_remembered(cache: Path) -> None:
    assert recall(MACHINE, RIVALS) is None
    remember(verdict(20, 10))
    assert recall(MACHINE, RIVALS) == verdict(20, 10)
    assert [path.suffix for path in cache.iterdir()] == [".json"]  # no temporary file is left


@pytest.mark.parametrize(
    "other",
    [
        replace(MACHINE, file_sha256="1" * 64),
        replace(MACHINE, libraries={"onnxruntime": "1", "openvino": "3"}),
        replace(MACHINE, processor="another"),
        replace(MACHINE, processors=4),
        replace(MACHINE, threads=1),
    ],
)
def test_another_machine_file_or_version_is_measured_anew(other: Machine) -> None:
    remember(verdict(20, 10))
    assert recall(other, RIVALS) is None


def foreign(change: Callable[[dict[str, Any]], object]) -> Callable[[str], str]:
    def write(text: str) -> str:
        content = json.loads(text)
        change(content)
        return json.dumps(content)

    return write


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: "",
        lambda text: text[:40],
        lambda text: "[]",
        lambda text: "null",
        lambda text: "[" * 100_000,
        lambda text: '{"machine": 1, "milliseconds": 2}',
        foreign(lambda content: content.update(more=1)),
        foreign(lambda content: content.pop("machine")),
        foreign(lambda content: content.update(machine=None)),
        foreign(lambda content: content["machine"].update(threads=1)),
        foreign(lambda content: content["milliseconds"].update(cpu=0)),
        foreign(lambda content: content["milliseconds"].update(cpu=-1.0)),
        foreign(lambda content: content["milliseconds"].update(cpu=float("nan"))),
        foreign(lambda content: content["milliseconds"].update(cpu="fast")),
        foreign(lambda content: content["milliseconds"].update(cpu=10**400)),
        foreign(lambda content: content.pop("rounds")),
        foreign(lambda content: content["milliseconds"].pop("cpu")),
        foreign(lambda content: content["milliseconds"].update(cuda=1.0)),
    ],
)
def test_a_damaged_or_foreign_memory_is_ignored(damage: Callable[[str], str], cache: Path) -> None:
    remember(verdict(20, 10))
    (path,) = cache.iterdir()
    path.write_text(damage(path.read_text()))
    assert recall(MACHINE, RIVALS) is None
    remember(verdict(20, 10))
    assert recall(MACHINE, RIVALS) == verdict(20, 10)


def test_bytes_that_are_no_text_are_ignored(cache: Path) -> None:
    remember(verdict(20, 10))
    next(cache.iterdir()).write_bytes(b"\xff\xfe\x00")
    assert recall(MACHINE, RIVALS) is None


def test_a_cache_that_cannot_be_written_or_has_no_place_is_done_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("ATSS_TOOLKIT_CACHE", str(tmp_path / "file"))  # no folder can be made below a file, even by root
    remember(verdict(20, 10))
    assert recall(MACHINE, RIVALS) is None

    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    for name in ("ATSS_TOOLKIT_CACHE", "ATSS_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    remember(verdict(20, 10))
    assert recall(MACHINE, RIVALS) is None


def test_the_users_folder_for_caches_is_the_usual_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ATSS_TOOLKIT_CACHE")
    monkeypatch.setenv("ATSS_HOME", str(tmp_path / "own"))
    assert cache_folder() == tmp_path / "own" / "fastest"
    monkeypatch.delenv("ATSS_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "atss-toolkit" / "fastest"


def test_the_machine_is_described_by_what_decides(model: Path, tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    machine = describe_machine(model, 3)
    assert machine is not None
    assert machine.threads == 3
    assert "openvino" in machine.libraries
    (tmp_path / "other.onnx").write_bytes(model.read_bytes() + b" ")
    other = describe_machine(tmp_path / "other.onnx", 3)
    assert other is not None
    assert other.file_sha256 != machine.file_sha256
    assert describe_machine(tmp_path / "missing.onnx", 3) is None
