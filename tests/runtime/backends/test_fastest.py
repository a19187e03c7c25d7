"""`auto` on a CPU takes the faster backend: measured once, remembered, and never in the way."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtime.backends import BackendError, choice, open_backend
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
from runtime.backends.options import BackendOptions
from runtime.detections import RawOutputs

from ...support.fakes import MANIFEST, RedBackend

RIVALS = ("openvino", "cpu")
MACHINE = Machine("0" * 64, {"onnxruntime": "1", "openvino": "2"}, "a processor", 2, 0)


class Clock:
    """Time that passes only in stand-in backends."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Timed(RedBackend):
    """A backend whose calls take these seconds each, the last of them for ever; an error ends the call instead."""

    def __init__(self, clock: Clock, *takes: float | BackendError, score: float = 0.5) -> None:
        super().__init__()
        self._clock, self._takes, self._score = clock, list(takes), score

    def infer(self, images: np.ndarray, image_sizes: np.ndarray, **options: Any) -> RawOutputs:
        took = self._takes.pop(0) if len(self._takes) > 1 else self._takes[0]
        if isinstance(took, BackendError):
            raise took
        self._clock.now += took
        found = super().infer(images, image_sizes, **options)
        return replace(found, detection_scores=np.full_like(found.detection_scores, self._score))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return cache_folder()


def verdict(openvino: float, cpu: float) -> Verdict:
    return Verdict(MACHINE, {"openvino": openvino, "cpu": cpu})


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
    slow_start = Timed(clock, 9, 0.03, 0.02, 5, 0.02)
    backends = {"openvino": Timed(clock, 0.1, 0.01), "cpu": slow_start}
    found, failed = compare_speed(backends, MACHINE, clock)
    assert failed == {}
    assert found is not None
    assert found.milliseconds == pytest.approx({"openvino": 10, "cpu": 20})


@pytest.mark.parametrize(("takes", "rounds"), [(0.001, MOST_ROUNDS), (0.2, 3), (7, 1)])
def test_measuring_ends_in_time(takes: float, rounds: int) -> None:
    clock = Clock()
    backends = {"openvino": Timed(clock, takes), "cpu": Timed(clock, takes)}
    compare_speed(backends, MACHINE, clock)
    calls = [len(backend.batches) for backend in backends.values()]
    assert calls == [rounds + 1] * 2
    assert clock.now <= BUDGET_S + 4 * takes + 1e-9


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


@pytest.mark.parametrize("takes", [(BackendError("no kernel"),), (1.0, BackendError("no kernel"))])
def test_a_backend_that_fails_is_named(takes: tuple[float | BackendError, ...]) -> None:
    clock = Clock()
    found, failed = compare_speed({"openvino": Timed(clock, *takes), "cpu": Timed(clock, 1.0)}, MACHINE, clock)
    assert found is None
    assert {name: str(error) for name, error in failed.items()} == {"openvino": "no kernel"}
    found, failed = compare_speed({"openvino": Timed(clock, 1.0), "cpu": Timed(clock, *takes)}, MACHINE, clock)
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
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))  # no folder can be made below a file, even by root
    remember(verdict(20, 10))
    assert recall(MACHINE, RIVALS) is None

    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", homeless)
    remember(verdict(20, 10))
    assert recall(MACHINE, RIVALS) is None


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


Opened = list[tuple[str, Timed]]
Takes = dict[str, Any]  # backend → what its calls take, or the error with which it doesn't start


@pytest.fixture
def auto(model: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., tuple[Any, Opened]]]:
    """Opens the model with `auto` where no GPU is, and stand-ins take known times."""
    monkeypatch.setattr(choice, "describe_machine", lambda path, threads: replace(MACHINE, threads=threads))

    def run(takes: Takes, **options: Any) -> tuple[Any, Opened]:
        clock, opened = Clock(), list[tuple[str, Timed]]()

        def open_one(path: Path, chosen: BackendOptions) -> Timed:
            given = takes.get(chosen.backend, BackendError("no driver; install one"))
            if isinstance(given, BackendError):
                raise given
            opened.append((chosen.backend, given if isinstance(given, Timed) else Timed(clock, given)))
            return opened[-1][1]

        monkeypatch.setattr(choice, "OrtBackend", open_one)
        monkeypatch.setattr(choice, "OpenVinoBackend", open_one)
        monkeypatch.setattr(choice, "compare_speed", lambda backends, machine: compare_speed(backends, machine, clock))
        return open_backend(model, **options), opened

    return run


@pytest.mark.parametrize(
    ("openvino", "cpu", "chosen", "why"),
    [
        (0.1, 0.05, "cpu", "faster than openvino by 2.00 x here, measured"),
        (0.05, 0.1, "openvino", "faster than cpu by 2.00 x here, measured"),
        (0.1, 0.1, "openvino", "as fast as cpu here, measured"),
    ],
)
def test_auto_takes_the_faster_and_remembers(
    auto: Callable[..., tuple[Any, Opened]], openvino: float, cpu: float, chosen: str, why: str
) -> None:
    backend, opened = auto({"openvino": openvino, "cpu": cpu})
    assert backend is dict(opened)[chosen]
    assert {name: one.is_closed for name, one in opened} == {name: name != chosen for name in RIVALS}
    assert backend.description == f"fake (best that starts; cuda: no driver; {why})"
    again, opened = auto({"openvino": openvino, "cpu": cpu})
    assert [name for name, _ in opened] == [chosen]  # the other isn't even opened
    assert again.batches == []
    assert again.description == backend.description


def test_auto_with_other_threads_measures_again(auto: Callable[..., tuple[Any, Opened]]) -> None:
    takes = {"openvino": 0.1, "cpu": 0.05}
    auto(takes)
    _, opened = auto(takes, threads=1)
    assert len(opened) == 2


def test_a_gpu_is_not_compared(auto: Callable[..., tuple[Any, Opened]]) -> None:
    backend, opened = auto({"cuda": 9.0, "openvino": 0.1, "cpu": 0.05})
    assert [name for name, _ in opened] == ["cuda"]
    assert backend.batches == []


@pytest.mark.parametrize("options", [{"hint": "throughput"}, {"precision_hint": "bf16"}])
def test_an_option_of_one_backend_decides_without_a_measurement(
    auto: Callable[..., tuple[Any, Opened]], options: dict[str, str]
) -> None:
    backend, opened = auto({"openvino": 0.1, "cpu": 0.05}, **options)
    assert [name for name, _ in opened] == ["openvino"]
    assert backend.batches == []


@pytest.mark.parametrize("refuses", RIVALS)
def test_a_file_that_one_library_refuses(auto: Callable[..., tuple[Any, Opened]], refuses: str, cache: Path) -> None:
    takes: Takes = {"openvino": 0.1, "cpu": 0.1} | {refuses: BackendError("no such operator; export again")}
    backend, opened = auto(takes)
    assert [name for name, _ in opened] == [name for name in RIVALS if name != refuses]
    assert backend.description == f"fake (best that starts; cuda: no driver; {refuses}: no such operator)"
    assert backend.batches == []
    assert not cache.exists()


@pytest.mark.parametrize("fails", RIVALS)
def test_a_library_that_fails_when_it_runs(auto: Callable[..., tuple[Any, Opened]], fails: str, cache: Path) -> None:
    clock = Clock()
    takes: Takes = {"openvino": 0.1, "cpu": 0.1} | {fails: Timed(clock, BackendError("out of memory; free some"))}
    backend, opened = auto(takes)
    assert backend is dict(opened)[next(name for name in RIVALS if name != fails)]
    assert dict(opened)[fails].is_closed
    assert not backend.is_closed
    assert f"{fails}: out of memory" in backend.description
    assert not cache.exists()  # perhaps it was the moment's fault


def test_both_fail(auto: Callable[..., tuple[Any, Opened]]) -> None:
    with pytest.raises(BackendError, match="lacks b"):
        auto({"openvino": BackendError("lacks a"), "cpu": BackendError("lacks b")})
    with pytest.raises(BackendError, match="fails b"):
        auto({name: Timed(Clock(), BackendError(f"fails {kind}")) for name, kind in zip(RIVALS, "ab", strict=True)})


def test_what_was_remembered_but_starts_no_more(auto: Callable[..., tuple[Any, Opened]]) -> None:
    auto({"openvino": 0.1, "cpu": 0.05})
    backend, opened = auto({"openvino": 0.1, "cpu": BackendError("gone")})
    assert [name for name, _ in opened] == ["openvino"]
    assert backend.description == "fake (best that starts; cuda: no driver; cpu: gone)"


OPEN = """
import sys
from runtime.backends import open_backend
print(open_backend(sys.argv[1]).description)
"""


def test_two_processes_at_once(model: Path, cache: Path) -> None:
    pytest.importorskip("openvino")
    running = [
        subprocess.Popen([sys.executable, "-c", OPEN, str(model)], stdout=subprocess.PIPE, text=True, env=os.environ)
        for _ in range(2)
    ]
    said = [process.communicate(timeout=300)[0] for process in running]
    assert [process.returncode for process in running] == [0, 0]
    assert all("here, measured" in text for text in said)
    (path,) = cache.iterdir()
    last = json.loads(path.read_text())
    machine = describe_machine(model, 0)
    assert machine is not None
    known = recall(machine, RIVALS)
    assert known is not None
    assert known.milliseconds == last["milliseconds"]
    assert str(known) in open_backend(model).description
