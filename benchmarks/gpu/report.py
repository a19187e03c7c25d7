"""Measure everything that the project says about GPUs, on the GPU of this machine: `scripts/gpu_report.sh`.

Writes `gpu_report.json` and `gpu_report.md` after each step. The same command goes on where it was stopped: steps that
are done for this code, this card and these versions are kept. A step that fails, crashes or hangs costs its own time
and nothing else.
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from runtime.errors import UserError, run_main
from runtime.files import atomic_write
from runtime.outputs import alone_in

from .conditions import CardWatch, describe
from .page import page
from .steps import STEPS, Ran, Step, minutes_of, read_figures, run_step

JSON, PAGE, FOLDER = "gpu_report.json", "gpu_report.md", "steps"
# Conditions under which a step's figures hold. What was missing and has been installed since is measured.
SAME = ("card", "driver", "versions", "compute-sanitizer", "environment", "git commit", "sources")


def main(arguments: Sequence[str] | None = None, registry: Sequence[Step] = STEPS) -> None:
    """The command: run the steps and write the report."""
    names = [step.name for step in registry]
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=20, help="time for everything (%(default)s)")
    parser.add_argument("--out", type=Path, default=Path("runs/gpu_report"), help="folder of the report (%(default)s)")
    parser.add_argument("--steps", nargs="+", choices=names, metavar="STEP", help=f"only these of {', '.join(names)}")
    parser.add_argument("--rehearse", action="store_true", help="small sizes on stand-ins: do the scripts work?")
    parser.add_argument("--fresh", action="store_true", help="run steps again that are done")
    given = parser.parse_args(arguments)
    if not given.minutes > 0:
        raise UserError(f"--minutes {given.minutes}: expected a number above 0")
    signal.signal(signal.SIGTERM, _interrupt)
    asked = [step for step in registry if given.steps is None or step.name in given.steps]
    with alone_in(given.out):
        write_report(given.out, asked, registry, given.minutes, given.rehearse, given.fresh)
    print(f"report: {given.out / PAGE}", flush=True)


def write_report(
    out: Path, asked: Sequence[Step], registry: Sequence[Step], minutes: float, rehearse: bool, fresh: bool
) -> dict[str, Any]:
    """Run the steps in `asked` within `minutes` and write the report of all that is known to the folder `out`."""
    ends = time.monotonic() + 60 * minutes
    conditions = describe()
    report: dict[str, Any] = {"conditions": conditions, "rehearsal": rehearse, "steps": _known(out, rehearse)}
    ran_on = {name: conditions[name] for name in SAME}
    pending = []
    for step in asked:
        entry = report["steps"].get(step.name)
        if fresh or entry is None or entry["ran_on"] != ran_on:
            _remove(out, step)
            report["steps"].pop(step.name, None)
        elif entry["outcome"] == "done":
            print(f"{step.name}: done before ({entry['seconds']:.0f} s)", flush=True)
            continue
        pending.append(step)
    _save(out, report, registry)
    for step in pending:
        left = (ends - time.monotonic()) / 60
        share = minutes_of(step, pending, left)
        if left <= 0:
            print(f"{step.name}: not run: no time is left", flush=True)
            continue
        print(f"{step.name}: {step.what} ({share:.1f} minutes)", flush=True)

        def enter(ran: Ran, card: dict[str, Any], step: Step = step, share: float = share) -> None:
            report["steps"][step.name] = {
                "outcome": ran.outcome,
                "text": ran.text,
                "seconds": round(ran.seconds, 1),
                "minutes": share,
                "card": card,
                "ran_on": ran_on,
                **(read_figures(_file(out, step)) or {"tables": {}, "failures": {}, "not_run": {}}),
            }
            _save(out, report, registry)

        enter(Ran("interrupted", "the report was ended while this step ran", 0), {})  # what stands if that happens
        with CardWatch() as watch:
            ran = run_step(step, _file(out, step), share, rehearse)
        enter(ran, watch.summary())
        print(f"{step.name}: {ran.outcome} after {ran.seconds:.0f} s {ran.text}".rstrip(), flush=True)
    return report


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Turn SIGTERM into a KeyboardInterrupt, so that no step outlives the report."""
    raise KeyboardInterrupt


def _file(out: Path, step: Step) -> Path:
    return out.absolute() / FOLDER / f"{step.name}.json"


def _remove(out: Path, step: Step) -> None:
    """Remove all that a step has left: its figures, its log, and files or folders of its own beside them."""
    for path in _file(out, step).parent.glob(f"{step.name}.*"):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def _known(out: Path, rehearse: bool) -> dict[str, Any]:
    """The steps of the report in a folder. Raises UserError where it is a rehearsal and this isn't, or the reverse."""
    try:
        known = json.loads((out / JSON).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    if known["rehearsal"] != rehearse:
        kind = "a rehearsal" if known["rehearsal"] else "a report that is no rehearsal"
        raise UserError(f"{out} holds {kind}: choose another --out, or delete that folder")
    return known["steps"]


def _save(out: Path, report: dict[str, Any], registry: Sequence[Step]) -> None:
    atomic_write(out / JSON, json.dumps(report, indent=1, ensure_ascii=False) + "\n")
    atomic_write(out / PAGE, page(report, registry))


if __name__ == "__main__":
    run_main(main)
