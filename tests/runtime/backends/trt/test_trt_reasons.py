"""Why TensorRT failed: each thread is told what its own call logged."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

pytest.importorskip("cuda.bindings.runtime", reason="the stand-in takes its enumerations from cuda-python")

from runtime.backends import BackendError
from runtime.backends.trt import engine as trt_engine
from runtime.backends.trt.backend import TrtBackend
from runtime.backends.trt.engine import ErrorLog

from ....support.engines import feed
from ....support.standin.install import StandIn


def test_threads_that_fail_at_once_are_told_their_own_reasons(
    engine: Path, stand_in: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both slots fail before either asks why: neither reason may be lost, or told to the other."""
    both = threading.Barrier(2)

    class Late(ErrorLog):
        def reason(self) -> str:
            both.wait(10)
            return super().reason()

    monkeypatch.setattr(trt_engine, "ErrorLog", Late)
    fail = stand_in.shared.fail
    monkeypatch.setattr(stand_in.shared, "fail", lambda text: fail(f"{text} of {threading.current_thread().name}"))
    with TrtBackend(engine, slots=2, cuda_graphs=False) as backend, ThreadPoolExecutor(2, "caller") as pool:
        for _ in range(5):
            stand_in.shared.failing_runs = 2
            calls = [pool.submit(reason_and_thread, backend) for _ in range(2)]
            for reason, name in [call.result() for call in calls]:
                assert reason.endswith(f"(told to fail) of {name}")
    stand_in.check_end()


def reason_and_thread(backend: TrtBackend) -> tuple[str, str]:
    """The text of a call's failure, and the calling thread's name."""
    with pytest.raises(BackendError) as failure:
        backend.infer(*feed(1, 64, 64))
    return str(failure.value), threading.current_thread().name


def test_what_another_thread_logged_is_told_as_such_and_stays_its_own() -> None:
    log = ErrorLog()
    with ThreadPoolExecutor(1) as pool:
        assert log.reason() == "it gives no reason"
        pool.submit(log.add, "theirs,\non two lines").result()
        assert log.reason() == "another thread logged: theirs, on two lines"
        log.add("ours")
        log.add("and more")
        assert log.reason() == "ours; and more"
        assert pool.submit(log.reason).result() == "theirs, on two lines"
        assert log.reason() == "it gives no reason"
        for number in range(1000):
            log.add(f"error {number} " + 100 * "x")
        assert log.reason().startswith("error 995 ")
