"""CUDA through both bindings, and the TensorRT backend's life with a network of known results, on a real driver.

    python -m benchmarks.gpu.driver --json driver.json [--rehearse]

Each part runs in a process of its own, so that one that hangs or dies takes nothing along. Without a GPU, `--rehearse`
runs the parts on the strict stand-in for the driver. With one, the stand-in and the driver are compared, sequence by
sequence, and the parts run again under compute-sanitizer.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import benchmarks.gpu.driver_graphs
import benchmarks.gpu.driver_sequences  # noqa: F401  both register sequences
from benchmarks.gpu.driver_site import MARK
from benchmarks.gpu.driver_verdicts import DIED, SEQUENCES, agreement, run_standin, unexpected
from benchmarks.gpu.step import Record, Row, begin
from runtime.cuda import Binding, CudaError, open_cuda

BINDINGS: tuple[Binding, ...] = ("cuda-python", "pycuda")
# Ways of letting pycuda's primary context go, and the runtime's way, which keeps it.
WAYS = ("dropped", "detached", "detached while pushed", "opened and closed")
WELL = "well"  # how a part ends that isn't run again
KEYS = ("binding", "check", "what", "way", "left_mib")  # columns by which a row takes the place of an earlier run's
CHILD = [sys.executable, "-m", "benchmarks.gpu.driver_child"]
# A tool's options, and the part that runs under it.
SANITIZED = {
    "planted": ("memcheck", [], ["planted"]),
    "backend, memcheck": ("memcheck", ["--leak-check", "full"], ["life", "--real", "--small", "--reset"]),
    "calls, memcheck": ("memcheck", ["--leak-check", "full"], ["calls", "--real", "--small", "--reset"]),
    "calls of pycuda, memcheck": ("memcheck", [], ["calls", "--real", "--small", "--binding", "pycuda"]),
    "calls, racecheck": ("racecheck", [], ["calls", "--real", "--small"]),
    "calls, initcheck": ("initcheck", [], ["calls", "--real", "--small"]),
    "backend, racecheck": ("racecheck", [], ["life", "--real", "--small"]),
    "backend, initcheck": ("initcheck", [], ["life", "--real", "--small"]),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the step."""
    record = begin(__doc__, arguments)
    present = {binding: why_not(binding) for binding in BINDINGS}
    is_real = any(reason is None for reason in present.values())
    if not is_real and not record.rehearsal:
        for part in ("calls", "life", "verdicts", "speed", "sanitizer"):
            record.skip(f"driver: {part}", f"no GPU: {present['cuda-python']}")
        return
    for part, seconds in (("calls", 90), ("life", 150)):
        for binding in BINDINGS:
            name = f"driver: {part}, {binding}"
            if is_real and present[binding] is not None:
                record.skip(name, str(present[binding]))
                continue
            _part(record, name, [part, "--binding", binding, *(["--real"] if is_real else [])], seconds)
    if not record.has("driver: parts", part="driver: verdicts", ended=WELL):
        with record.part("driver: verdicts"):
            _verdicts(record, is_real)
    _part(record, "driver: speed", ["speed", *(["--real"] if is_real else [])], 90)
    for way in WAYS if is_real and present["pycuda"] is None else ():
        _part(record, f"driver: pycuda's context, {way}", [way], 30)
    for name, (tool, options, given) in SANITIZED.items():
        _sanitize(record, name, tool, options, given, is_real, present)


def why_not(binding: Binding) -> str | None:
    """Why a binding can't be used here; None where it can."""
    try:
        open_cuda(0, binding).close()
    except CudaError as error:
        return str(error)
    except Exception as error:  # of the binding itself
        return f"{type(error).__name__}: {error}"
    return None


def _run(command: list[str], seconds: float) -> tuple[list[Row], str, str | None]:
    """The rows of a process, what else it wrote, and why it ended early, if so."""
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, errors="replace", start_new_session=True)
    try:
        output, errors = process.communicate(timeout=seconds)
        reason = None if process.returncode == 0 else f"exit status {process.returncode}"
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # what a sanitizer started too: it would keep the GPU's memory
        output, errors = process.communicate()
        reason = f"stopped after {seconds:.0f} s"
    lines = output.splitlines()
    rows = [json.loads(line[len(MARK) :]) for line in lines if line.startswith(MARK)]
    rest = "\n".join([*(line for line in lines if not line.startswith(MARK)), errors])
    return rows, rest, reason


def _part(record: Record, name: str, arguments: list[str], seconds: float) -> None:
    """Run a part and take its rows over; a part that ended well isn't run again."""
    if record.has("driver: parts", part=name, ended=WELL):
        return
    with record.part(name):
        if not record.has_time(10):
            record.skip(name, "no time left")
            return
        began = time.monotonic()
        # It ends before the step is killed: what it found until then would be lost.
        rows, rest, reason = _run([*CHILD, *arguments], min(seconds, record.seconds_left))
        for row in rows:
            same = {key: value for key, value in row["columns"].items() if key in KEYS}
            record.forget(row["table"], **same)
        for row in rows:
            record.row(row["table"], **row["columns"])
        bad = [row["columns"]["check"] for row in rows if "FAILED" in str(row["columns"].get("result"))]
        ended = reason or ("checks failed" if bad else WELL)
        record.forget("driver: parts", part=name)
        took = round(time.monotonic() - began, 1)
        record.row("driver: parts", part=name, ended=ended, seconds=took, wrote=rest.strip()[-600:])
        if ended != WELL:
            raise RuntimeError(f"{ended}: {'; '.join(bad)} {rest.strip()[-1500:]}")


def _verdicts(record: Record, is_real: bool) -> None:
    """A row per sequence with both verdicts. Behind a sequence that ends its process another process goes on.

    Raises RuntimeError where the stand-in is laxer than the driver, gives another value, or is stricter unexpectedly.
    """
    names = list(SEQUENCES)
    standin = {name: run_standin(name) for name in names}
    driver: dict[str, str] = {}
    real = ["--real"] if is_real else []  # in a rehearsal the stand-in is compared with itself
    began = time.monotonic()
    while len(driver) < len(names) and record.has_time(10):
        limit = min(60, record.seconds_left)
        rows, rest, reason = _run([*CHILD, "verdicts", *real, "--skip", str(len(driver))], limit)
        driver |= {row["columns"]["sequence"]: row["columns"]["verdict"] for row in rows if row["table"] == "verdict"}
        begun = [row["columns"]["sequence"] for row in rows if row["table"] == "begins"]
        if begun and begun[-1] not in driver and record.has_time():  # without time left it was stopped
            driver[begun[-1]] = f"{DIED} ({reason})"
        elif not begun:
            raise RuntimeError(f"no sequence runs: {reason} {rest.strip()[-1500:]}")
    agreements: dict[str, str] = {}
    record.forget("driver: verdicts")
    record.forget("driver: parts", part="driver: verdicts")
    for name in names:
        verdict = driver.get(name, "not comparable: no time left")
        agreements[name] = agreement(standin[name], verdict)
        record.row(
            "driver: verdicts", sequence=name, stand_in=standin[name], driver=verdict, agreement=agreements[name]
        )
    ended = WELL if len(driver) == len(names) else "early"
    record.row("driver: parts", part="driver: verdicts", ended=ended, seconds=round(time.monotonic() - began, 1))
    if problems := unexpected(agreements):
        raise RuntimeError(f"the stand-in and the driver differ unexpectedly: {'; '.join(problems)}")


def _sanitize(
    record: Record,
    name: str,
    tool: str,
    options: list[str],
    arguments: list[str],
    is_real: bool,
    present: dict[Binding, str | None],
) -> None:
    """A part under a tool of compute-sanitizer: a row with the errors that it found."""
    part = f"driver: sanitizer, {name}"
    if record.has("driver: sanitizer", what=name):
        return
    with record.part(part):
        program = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
        if not is_real or not Path(program).exists() or ("pycuda" in arguments and present["pycuda"] is not None):
            record.skip(part, "it needs a GPU, compute-sanitizer and the binding")
            return
        if not record.has_time(60):  # it takes 75 s at most, and the step is killed 20 s after its time
            record.skip(part, "no time left")
            return
        began = time.monotonic()
        command = [program, "--tool", tool, *options, "--print-limit", "200", *CHILD, *arguments]
        rows, rest, reason = _run(command, 75)
        seconds = round(time.monotonic() - began, 1)
        found = [line for line in rest.splitlines() if line.startswith("=========")]
        summary = [line.strip("= ") for line in found if "SUMMARY" in line]
        errors = [int(number) for line in summary for number in re.findall(r"(\d+) (?:error|hazard)", line)]
        refused = sorted({line for line in found if "Program hit" in line and "cuGetProcAddress" not in line})
        asked = sum(
            "Program hit" in line and "cuGetProcAddress" in line for line in found
        )  # for functions of later CUDA
        failed = [
            f"{row['columns']['check']}: {row['columns']['result']}"
            for row in rows
            if "FAILED" in str(row["columns"].get("result"))
        ]
        record.row(
            "driver: sanitizer",
            what=name,
            tool=tool,
            errors=sum(errors) - asked if errors else None,
            refused_calls=refused[:10],
            summary="; ".join(summary),
            ended=reason or "well",
            seconds=seconds,
            checks=sum("check" in row["columns"] for row in rows),
            failed=failed,
            first_lines="\n".join(found[:30] if errors and sum(errors) else found[:3]),
        )
        if name == "planted":
            if not errors or not sum(errors):
                raise RuntimeError(f"the planted error was not found: {rest[-800:]}")
        elif not errors or sum(errors) > asked or failed:
            raise RuntimeError(f"{summary or reason}; failed: {failed}; {rest.strip()[-600:]}")


if __name__ == "__main__":
    main()
