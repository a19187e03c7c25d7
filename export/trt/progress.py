"""A build in progress: TensorRT's phases as a progress bar, its messages by severity, and a way to stop it."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from typing import Any, TypeVar

from tqdm import tqdm

from runtime.errors import EXIT_INTERRUPTED

_STEPS = 1000  # of the progress bar
_HEARD_WITHIN = 0.1  # s, until a Ctrl-C is noticed
Result = TypeVar("Result")


class Phases:
    """The progress of a build, from the nested phases that the library reports. Any thread may report."""

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
        """Note the begin of a phase within `parent` (None: of the whole build)."""
        with self._lock:
            self._open[phase] = (parent, max(steps, 1), 0)
            self._bar.set_postfix_str(phase, refresh=False)
            self._show()

    def step(self, phase: str, step: int) -> bool:
        """Note a finished step of a phase. Returns False to ask the library to stop."""
        with self._lock:
            if phase in self._open:
                parent, steps, _ = self._open[phase]
                self._open[phase] = (parent, steps, min(step + 1, steps))
                self._show()
        return not self.is_cancelled

    def finish(self, phase: str) -> None:
        """Note the end of a phase, which may come before its last step."""
        with self._lock:
            self._open.pop(phase, None)
            self._show()

    def close(self) -> None:
        """Remove the progress bar."""
        self._bar.close()

    def fraction(self) -> float:
        """The finished part of the build, 0–1; an unfinished step counts by the progress of the phase within it."""
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
    """A progress monitor that reports to `phases`. It must outlive the builder's configuration."""

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
    """A TensorRT logger that appends errors and warnings to these lists, a line each, and drops other messages."""

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
    """Run `work` in a thread, so that Ctrl-C is noticed at once although the library rarely calls back.

    The first Ctrl-C calls `cancel` and waits, because no exception may cross the library; the second ends the process.
    Raises what `work` raises, or KeyboardInterrupt.
    """
    results: list[Result] = []
    failures: list[BaseException] = []
    awaited = threading.Event()  # work begins only after the wait that can cancel it
    done = threading.Event()  # not Thread.join(), which takes a running thread for an ended one once interrupted

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
    """Wait in short steps: a signal that comes just before a wait begins is handled only when the wait ends."""
    while not done.wait(_HEARD_WITHIN):
        pass
