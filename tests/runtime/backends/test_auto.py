"""`auto` on a CPU takes the faster backend, remembers it, and gets along where one of them fails."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from runtime.backends import BackendError, choice, open_backend
from runtime.backends.choice import RIVALS
from runtime.backends.fastest import Machine, cache_folder, compare_speed, describe_machine, recall
from runtime.backends.options import BackendOptions

from ...support.fakes import MANIFEST
from ...support.timed import Clock, Timed

MACHINE = Machine("0" * 64, {"onnxruntime": "1", "openvino": "2"}, "a processor", 2, 0)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ATSS_TOOLKIT_CACHE", str(tmp_path / "cache"))
    return cache_folder()


Opened = list[tuple[str, Timed]]
Takes = dict[str, Any]  # backend → what its calls take, or the error with which it doesn't start


@pytest.fixture
def auto(model: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Any, Opened]]:
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
    stand_ins = {name: Timed(Clock(), BackendError(f"fails {kind}")) for name, kind in zip(RIVALS, "ab", strict=True)}
    with pytest.raises(BackendError, match="fails b"):
        auto(stand_ins)
    assert [one.is_closed for one in stand_ins.values()] == [True, True]


def test_whatever_else_ends_the_measurement_closes_both(auto: Callable[..., tuple[Any, Opened]]) -> None:
    class Broken(Timed):
        def infer(self, *arguments: Any, **options: Any) -> Any:
            raise ZeroDivisionError

    stand_ins = {"openvino": Broken(Clock(), 1.0), "cpu": Timed(Clock(), 1.0)}
    with pytest.raises(ZeroDivisionError):
        auto(stand_ins)
    assert [one.is_closed for one in stand_ins.values()] == [True, True]


def test_an_int8_file_is_not_measured(auto: Callable[..., tuple[Any, Opened]], cache: Path) -> None:
    clock = Clock()
    takes = {"openvino": Timed(clock, 0.1), "cpu": Timed(clock, 0.05)}
    for one in takes.values():
        one.manifest = replace(MANIFEST, precision="int8")
    backend, opened = auto(takes)
    assert [name for name, _ in opened] == ["openvino"]
    assert backend.batches == []
    assert not backend.is_closed
    assert backend.description == "fake (best that starts; cuda: no driver)"
    assert not cache.exists()
    backend, opened = auto({"openvino": BackendError("no driver"), "cpu": takes["cpu"]})
    assert [name for name, _ in opened] == ["cpu"]
    assert not backend.is_closed


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
