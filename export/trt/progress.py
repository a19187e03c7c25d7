"""What TensorRT says while it builds: phases as one bar, messages sorted by weight, and a way to stop it."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from typing import Any, TypeVar

from tqdm import tqdm

from runtime.errors import EXIT_INTERRUPTED

_STEPS = 1000  # of the bar
_HEARD_WITHIN = 0.1  # s, a Ctrl-C
Result = TypeVar("Result")


class Phases:
    """How far a build is, from the nested phases that the library reports; any thread may report."""

    def __init__(self, show: bool) -> None:
        self._lock = threading.Lock()
        self._open: dict[str, tuple[str | None, int, int]] = {}  # phase → parent, steps, steps done
        self._reached = 0
        self.is_cancelled = False
        self._bar = tqdm(
            total=_STEPS,
            desc="building",
            disable=not show,
            leave=False,
            bar_format="{desc} {percentage:3.0f}% |{bar}| {elapsed}{postfix}",
        )

    def start(self, phase: str, parent: str | None, steps: int) -> None:
        with self._lock:
            self._open[phase] = (parent, max(steps, 1), 0)
            self._bar.set_postfix_str(phase, refresh=False)
            self._show()

    def step(self, phase: str, step: int) -> bool:
        """Note a finished step; False asks the library to stop."""
        with self._lock:
            if phase in self._open:
                parent, steps, _ = self._open[phase]
                self._open[phase] = (parent, steps, min(step + 1, steps))
                self._show()
        return not self.is_cancelled

    def finish(self, phase: str) -> None:
        with self._lock:
            self._open.pop(phase, None)
            self._show()

    def close(self) -> None:
        self._bar.close()

    def fraction(self) -> float:
        """In 0–1: a step of a phase counts as far as the phase within it has come."""
        return max((self._within(phase) for phase, (parent, _, _) in self._open.items() if parent is None), default=0.0)

    def _within(self, phase: str) -> float:
        _, steps, done = self._open[phase]
        inner = max((self._within(name) for name, (parent, _, _) in self._open.items() if parent == phase), default=0.0)
        return min(1.0, (done + inner) / steps)

    def _show(self) -> None:
        reached = max(self._reached, int(self.fraction() * _STEPS))  # phases may end before their last step
        self._bar.update(reached - self._reached)
        self._reached = reached


def make_monitor(trt: Any, phases: Phases) -> Any:
    """The library's progress monitor over `phases`. It must outlive the builder's configuration."""

    class Monitor(trt.IProgressMonitor):
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            phases.start(phase_name, parent_phase, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            return phases.step(phase_name, step)

        def phase_finish(self, phase_name: str) -> None:
            phases.finish(phase_name)

    return Monitor()


def make_logger(trt: Any, errors: list[str], warnings: list[str]) -> Any:
    """A logger that keeps errors and warnings, each on one line, and drops the rest."""

    class Logger(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                errors.append(" ".join(message.split()))
            elif severity == trt.ILogger.WARNING:
                warnings.append(" ".join(message.split()))

    return Logger()


def interruptible(work: Callable[[], Result], cancel: Callable[[], None]) -> Result:
    """Run `work` in a thread, so that Ctrl-C is heard at once: the first asks it to stop, the second ends the process.

    The library calls back rarely, and an exception may not cross it. Raises what `work` raises, or KeyboardInterrupt.
    """
    results: list[Result] = []
    failures: list[BaseException] = []
    awaited = threading.Event()  # no work before the wait that can cancel it
    done = threading.Event()  # not Thread.join(): interrupted once, it takes a running thread for an ended one

    def run() -> None:
        awaited.wait()
        try:
            results.append(work())
        except BaseException as error:
            failures.append(error)
        done.set()

    thread = threading.Thread(target=run, name="engine build", daemon=True)
    thread.start()
    try:
        awaited.set()
        _wait(done)
    except KeyboardInterrupt:
        try:
            cancel()
            print("\nstopping the build; press Ctrl-C again to leave at once", file=sys.stderr, flush=True)
            awaited.set()
            _wait(done)
            thread.join()
        except KeyboardInterrupt:
            os._exit(EXIT_INTERRUPTED)  # the library can't be stopped otherwise, and nothing was written yet
        raise
    thread.join()
    if failures:
        raise failures[0]
    return results[0]


def _wait(done: threading.Event) -> None:
    """Wait in steps: a signal that comes just before a wait begins is heard only when it ends."""
    while not done.wait(_HEARD_WITHIN):
        pass
