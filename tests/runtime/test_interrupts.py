"""A signal ends a command in one line at any moment: while it imports, works, cleans up, and ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from runtime.cli import COMMANDS

pytestmark = pytest.mark.skipif(os.name != "posix", reason="sends signals")
WORDS = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated", signal.SIGHUP: "hung up"}


def _answers_signals() -> None:
    """Whatever started the tests may ignore some: nohup SIGHUP, a shell's background SIGINT."""
    for number in WORDS:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)


def start(repository: Path, *command: str, **options: object) -> subprocess.Popen[str]:
    options = {"preexec_fn": _answers_signals, **options}
    return subprocess.Popen(
        [sys.executable, *command],
        cwd=repository,
        env={**os.environ, "PYTHONPATH": str(repository)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,  # type: ignore[call-overload]
    )


def ready(process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"


IN_IMPORTS = """
import runpy, sys, types
class Slow:
    def find_spec(self, name, path=None, target=None):
        if name == "{heavy}":
            print("ready", flush=True)
            import time
            time.sleep(60)
sys.meta_path.insert(0, Slow())
runpy.run_module("{module}", run_name="__main__", alter_sys=True)
"""
HEAVY = {"runtime.packages": "runtime.cli", "runtime.doctor": "runtime.doctor.report", "train.plot": "matplotlib"}


@pytest.mark.parametrize("module", sorted({command.module for command in COMMANDS.values()}))
def test_ctrl_c_in_the_imports_of_every_command(module: str, repository: Path) -> None:
    """The process is caught while it imports something slow."""
    code = IN_IMPORTS.format(module=module, heavy=HEAVY.get(module, "tqdm" if "doctor" in module else "numpy"))
    process = start(repository, "-c", code)
    ready(process)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=30)
    assert (process.returncode, said) == (130, "interrupted\n")


@pytest.mark.parametrize("number", WORDS)
@pytest.mark.parametrize("script", ["export/to_onnx.py", "export/quantize.py"])
def test_scripts_at_many_moments(script: str, number: signal.Signals, repository: Path) -> None:
    """Whatever the moment, there is no traceback. Python itself takes some time before it runs a line of ours."""
    for moment in (0.5, 0.9, 1.4):
        process = start(repository, script, "missing.pt")
        time.sleep(moment)
        process.send_signal(number)
        _, said = process.communicate(timeout=60)
        assert "Traceback" not in said
        assert process.returncode in (128 + number, -number, 2)


WORK = """
import sys, time
from runtime.errors import UserError, run_main
from runtime.interrupts import held
def main():
    {body}
run_main(main)
"""


def run_and_signal(repository: Path, body: str, *numbers: signal.Signals, **options: object) -> tuple[int, str, str]:
    process = start(repository, "-c", WORK.format(body=body.replace("\n", "\n    ")), **options)
    ready(process)
    for number in numbers:
        process.send_signal(number)
        time.sleep(0.3)
    out, said = process.communicate(timeout=30)
    return process.returncode, out, said


@pytest.mark.parametrize("number", WORDS)
def test_the_first_signal_lets_work_be_written(number: signal.Signals, repository: Path) -> None:
    body = """
try:
    print("ready", flush=True)
    time.sleep(60)
except KeyboardInterrupt:
    print("written")
    raise"""
    assert run_and_signal(repository, body, number) == (128 + number, "written\n", f"{WORDS[number]}\n")


def test_the_second_signal_ends_at_once(repository: Path) -> None:
    body = """
try:
    print("ready", flush=True)
    time.sleep(60)
except KeyboardInterrupt:
    time.sleep(60)"""
    began = time.monotonic()
    assert run_and_signal(repository, body, signal.SIGTERM, signal.SIGINT) == (130, "", "interrupted\n")
    assert time.monotonic() - began < 25


def test_a_held_signal_waits(repository: Path) -> None:
    body = """
with held():
    print("ready", flush=True)
    for _ in range(100): time.sleep(0.01)
    print("whole")
print("not reached")"""
    assert run_and_signal(repository, body, signal.SIGINT) == (130, "whole\n", "interrupted\n")


def test_an_error_that_a_signal_causes_is_no_defect(repository: Path) -> None:
    """A library turns the exception into one of its own."""
    body = """
try:
    print("ready", flush=True)
    time.sleep(60)
except KeyboardInterrupt:
    raise ImportError("numpy: a half\\nimport")"""
    code, _, said = run_and_signal(repository, body, signal.SIGINT)
    assert (code, said) == (130, "interrupted (in the end: ImportError: numpy: a half import)\n")


def test_an_exception_that_python_would_drop_is_raised_again(repository: Path) -> None:
    body = """
class Dropping:
    def __del__(self):
        print("ready", flush=True)
        time.sleep(60)
Dropping()
time.sleep(60)"""
    assert run_and_signal(repository, body, signal.SIGINT) == (130, "", "interrupted\n")


def test_a_signal_while_the_interpreter_ends(repository: Path) -> None:
    body = """
import atexit
def last():
    print("ready", flush=True)
    time.sleep(60)
atexit.register(last)"""
    assert run_and_signal(repository, body, signal.SIGINT) == (130, "", "interrupted\n")


def test_ignored_signals_stay_ignored(repository: Path) -> None:
    """As nohup starts a process, and a script its jobs in the background."""
    body = """
print("ready", flush=True)
time.sleep(1)
print("whole")"""
    ignoring = {"preexec_fn": lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN)}
    assert run_and_signal(repository, body, signal.SIGHUP, **ignoring) == (0, "whole\n", "")


@pytest.mark.parametrize("signals", [(signal.SIGTERM,), (signal.SIGTERM, signal.SIGTERM)])
def test_no_child_is_left(signals: tuple[signal.Signals, ...], repository: Path) -> None:
    """Neither a process of multiprocessing nor one of subprocess, whichever way the command ends."""
    body = """
import multiprocessing, os, subprocess
children = [multiprocessing.Process(target=time.sleep, args=(60,))]
children[0].start()
other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
print("ready", flush=True)
try:
    time.sleep(60)
except KeyboardInterrupt:
    print(flush=True)
    time.sleep(1)
    raise"""
    process = start(repository, "-c", WORK.format(body=body.replace("\n", "\n    ")), start_new_session=True)
    ready(process)
    for number in signals:
        process.send_signal(number)
        time.sleep(0.3)
    process.communicate(timeout=30)
    assert process.returncode == 143
    until = time.monotonic() + 10
    while time.monotonic() < until:
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.05)
    pytest.fail("a child of the command is still running")
