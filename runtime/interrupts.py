"""Ctrl-C, SIGTERM and SIGHUP: a command ends in one line, with the shell's exit code, at any moment.

While a command imports its libraries nothing is worth keeping: `end_at_once`. While it works (`raise_interrupts`), the
first signal raises `Interrupted` in the main thread, so that what is done can be written; a second one ends the process
at once. Where an exception would leave something half done, `held` lets it wait. No child process is left behind.

A signal that the parent process ignores (nohup, a script's job in the background) stays ignored. This module imports
little, because commands need it before all else.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:  # typing would be most of the time that this module takes to import
    from collections.abc import Iterator
    from types import FrameType
    from typing import Any

# The exit code of a command that a signal ended is this and the signal's number, as shells have it.
ENDED_BY_SIGNAL = 128
_WORDS = {"SIGINT": "interrupted", "SIGTERM": "terminated", "SIGHUP": "hung up"}
_SIGNALS: dict[int, str] = {int(getattr(signal, name)): word for name, word in _WORDS.items() if hasattr(signal, name)}


class Interrupted(KeyboardInterrupt):
    """A signal that ends the command. `number` is the signal's."""

    def __init__(self, number: int) -> None:
        super().__init__(_SIGNALS[number])
        self.number = number


class _State:
    """What has come so far, in the process that set its handlers."""

    process = 0
    received: int | None = None  # the first signal
    is_waiting = False  # it has not been raised yet
    holds = 0


def end_at_once() -> None:
    """From now on a signal ends the process with its line and exit code, and runs no other code."""
    _install(_leave)


@contextlib.contextmanager
def raise_interrupts() -> Iterator[None]:
    """While the block runs, the first signal raises Interrupted in the main thread; the second one ends the process.

    After the block `end_at_once` holds: the interpreter's own end would answer a signal with a traceback.
    """
    _State.received, _State.is_waiting, _State.holds = None, False, 0
    before, sys.unraisablehook = sys.unraisablehook, _raise_again
    _install(_raise)
    try:
        yield
    finally:
        end_at_once()
        sys.unraisablehook = before


@contextlib.contextmanager
def held() -> Iterator[None]:
    """A first signal that comes while the block runs is raised when the block is done."""
    _State.holds += 1
    try:
        yield
    finally:
        _State.holds -= 1
    if _State.is_waiting and _State.holds == 0 and _State.received is not None:
        _State.is_waiting = False
        raise Interrupted(_State.received)


@contextlib.contextmanager
def kept_from_children() -> Iterator[None]:
    """Processes that are started in the block never see Ctrl-C, which a terminal sends to them too: we end them."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def exit_of(error: BaseException) -> tuple[str, int] | None:
    """The line and the exit code of an interrupted command; None where `error` is not about an interruption.

    After a signal any error counts as one, and the line names it: an import that is broken off raises what it likes.
    """
    number = error.number if isinstance(error, Interrupted) else _State.received
    if number is None:
        if not isinstance(error, KeyboardInterrupt):
            return None
        number = int(signal.SIGINT)
    line = _SIGNALS[number]
    if not isinstance(error, KeyboardInterrupt):
        line += f" (in the end: {' '.join(f'{type(error).__name__}: {error}'.split())[:200]})"
    return line, ENDED_BY_SIGNAL + number


def end_children() -> None:
    """Send SIGTERM to the processes that this one has started and that are still running."""
    children: set[int] = set()
    with contextlib.suppress(OSError):  # Linux; elsewhere only those of multiprocessing are known
        for thread in os.listdir("/proc/self/task"):
            with open(f"/proc/self/task/{thread}/children", encoding="ascii") as file:
                children.update(map(int, file.read().split()))
    module = sys.modules.get("multiprocessing")
    if module is not None:
        children.update(process.pid for process in module.active_children())
    for child in children:
        with contextlib.suppress(OSError):
            os.kill(child, signal.SIGTERM)


def _install(handler: Any) -> None:
    _State.process = os.getpid()
    for number in _SIGNALS:
        if signal.getsignal(number) not in (signal.SIG_IGN, None):
            with contextlib.suppress(ValueError):  # only the main thread may
                signal.signal(number, handler)


def _leave(number: int, frame: FrameType | None) -> None:
    if _is_copy(number):
        return
    with contextlib.suppress(OSError):
        os.write(2, f"{_SIGNALS[number]}\n".encode())
    end_children()
    os._exit(ENDED_BY_SIGNAL + number)


def _raise(number: int, frame: FrameType | None) -> None:
    if _is_copy(number):
        return
    if _State.received is not None:
        _leave(number, frame)
    _State.received = number
    if hasattr(signal, "SIGCHLD") and callable(signal.getsignal(signal.SIGCHLD)):
        # torch raises from this signal when a process that loads images ends; the same Ctrl-C may end it.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    if _State.holds:
        _State.is_waiting = True
    else:
        raise Interrupted(number)


def _is_copy(number: int) -> bool:
    """Whether this process is a fork of the one that set the handlers: the signal ends it as if there were none."""
    if os.getpid() == _State.process:
        return False
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
    return True


def _raise_again(unraisable: Any) -> None:
    """Where Python would drop the exception (in a destructor, in a callback of a library), raise it once more."""
    if not isinstance(unraisable.exc_value, Interrupted):
        sys.__unraisablehook__(unraisable)
        return
    import threading

    _State.received = None
    # Later, and from another thread: raised here, it would be dropped again.
    again = threading.Timer(0.05, _send_to_main_thread, (unraisable.exc_value.number,))
    again.daemon = True
    again.start()


def _send_to_main_thread(number: int) -> None:
    import _thread
    import threading

    if hasattr(signal, "pthread_kill"):
        signal.pthread_kill(threading.main_thread().ident or 0, number)
    else:
        _thread.interrupt_main(signal.Signals(number))
