"""Defects planted into the TensorRT backend, one at a time: the stand-in catches each, in every order of execution.

They are planted by wrapping objects and functions (support/trt_seams.py), so renaming and reformatting the backend's
source breaks nothing here.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("cuda.bindings.runtime", reason="the stand-in takes its enumerations from cuda-python")

from runtime.backends import BackendError
from runtime.backends.trt.backend import TrtBackend
from runtime.detections import RawOutputs
from runtime.stopwatch import Stopwatch

from ....support.engines import assert_same, feed, poison_of, write_standin_engine
from ....support.standin.driver import Order
from ....support.standin.install import Binding, StandIn, install
from ....support.standin.network import expected
from ....support.trt_defects import DEFECTS, Defect
from ....support.trt_defects_more import MORE_DEFECTS
from ....support.trt_seams import Seams


def work(stand_in: StandIn, open_backend: Callable[[], Any]) -> None:
    """What a user does: one thread, several, closing while a call runs. Raises at the first thing that is wrong."""
    kept = []
    with open_backend() as backend:
        with ThreadPoolExecutor(2) as pool:  # the first shape of both slots at once
            stand_in.driver.pause("create_execution_context")
            calls = [pool.submit(backend.infer, *feed(1, 32, 32))]
            stand_in.driver.has_paused.wait(10)
            calls.append(pool.submit(backend.infer, *feed(1, 32, 32)))
            time.sleep(0.02)
            stand_in.driver.may_go_on.set()
            for call in calls:
                check(call.result(), expected(*feed(1, 32, 32)))
        for repeat in range(3):
            for shape in ((1, 64, 64), (3, 64, 96), (2, 64, 192), (8, 32, 32)):
                images, sizes = feed(*shape, seed=repeat)
                kept.append(
                    (backend.infer(images, sizes, stopwatch=Stopwatch() if repeat else None), expected(images, sizes))
                )
                check(*kept[-1])
        with ThreadPoolExecutor(3) as pool:
            feeds = [feed(1 + seed % 3, 64, 64, seed) for seed in range(18)]
            for given, each in zip(pool.map(lambda each: backend.infer(*each), feeds), feeds, strict=True):
                check(given, expected(*each))
        for given, wanted in kept:
            check(given, wanted)
        stand_in.driver.pause("cudaMemcpyAsync", "memcpy_htod_async")
        with ThreadPoolExecutor(2) as pool:
            last = pool.submit(backend.infer, *feed(8, 96, 96))
            stand_in.driver.has_paused.wait(10)
            closing = pool.submit(backend.close)
            time.sleep(0.02)
            stand_in.driver.may_go_on.set()
            check(last.result(), expected(*feed(8, 96, 96)))
            closing.result()
        check_closed(backend)
    stand_in.check_end()


def check(given: RawOutputs, wanted: RawOutputs) -> None:
    assert not poison_of(given), f"POISON was read: {poison_of(given)}"
    try:
        assert_same(given, wanted)
    except AssertionError as error:
        raise AssertionError("results differ") from error


def check_closed(backend: TrtBackend) -> None:
    try:
        backend.infer(*feed(1, 64, 64))
        said = "nothing"
    except BackendError as error:
        said = str(error)
    assert "was closed" in said, f"a closed backend answers: {said}"


def outcome(stand_in: StandIn, path: Path, binding: Binding) -> str:
    """What went wrong, empty for nothing: the error and whatever rule was broken before it."""
    try:
        work(stand_in, lambda: TrtBackend(path, binding=binding))
    except (Exception, RuntimeWarning) as error:
        chain: list[str] = []
        cause: BaseException | None = error
        while cause is not None:
            chain.append(f"{type(cause).__name__}: {cause}")
            cause = cause.__cause__ or cause.__context__
        return "; ".join([*chain, *stand_in.driver.violations])
    return ""


@pytest.mark.parametrize("order", ["late", "eager", pytest.param("random", marks=pytest.mark.slow)])
@pytest.mark.parametrize("defect", [*DEFECTS, *MORE_DEFECTS], ids=lambda defect: defect.what)
def test_a_planted_defect_is_caught(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, defect: Defect, order: Order
) -> None:
    stand_in = install(monkeypatch, defect.binding, defect.names, order)
    path = write_standin_engine(tmp_path, stand_in, version_compatible=defect.version_compatible)
    defect.plant(Seams(monkeypatch, stand_in))
    found = outcome(stand_in, path, defect.binding)
    assert re.search(defect.caught, found), found or "nothing was found"


def test_defects_have_names_of_their_own() -> None:
    names = [defect.what for defect in (*DEFECTS, *MORE_DEFECTS)]
    assert len(names) == len(set(names)) >= 58


@pytest.mark.parametrize("is_wrapped", [False, True])
@pytest.mark.parametrize("order", ["late", "eager", "random"])
@pytest.mark.parametrize("names", ["tensorrt-10.16.1", "rtx-1.7.1"])
@pytest.mark.parametrize("binding", ["cuda-python", "pycuda"])
def test_without_a_defect_nothing_is_found(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, binding: Binding, names: str, order: Order, is_wrapped: bool
) -> None:
    """Neither in the backend nor in the wrappers that defects are planted with."""
    stand_in = install(monkeypatch, binding, names, order)
    if is_wrapped:
        Seams(monkeypatch, stand_in)
    assert outcome(stand_in, write_standin_engine(tmp_path, stand_in), binding) == ""
