"""Train the paper's systems in miniature and report on them (`python -m train.reproduce --hours 4`)."""

from __future__ import annotations

if __name__ == "__main__":  # before the other imports, which take their time: Ctrl-C ends them in one line
    from runtime.interrupts import end_at_once

    end_at_once()

import math
import os
import time
from pathlib import Path
from typing import Annotated

from runtime.bounds import Bounds, Positive, argument
from runtime.command_names import program
from runtime.command_parser import CommandParser
from runtime.errors import run_main
from runtime.outputs import check_outputs

from .. import shapes
from .pretrain import pretrain
from .report import CROSSINGS_PLOT, K_PLOT, NUMBERS, PAGE, write_report
from .run import run
from .systems import SIDE, STEPS, jobs

Hours = Annotated[float, Bounds(0, 1e6)]


def main() -> None:
    """The command: draw the data, train the systems, and write the report."""
    parser = CommandParser(
        prog=program("train.reproduce"),
        description="Train the systems of the ATSS paper in miniature, several seeds each, and write table and plots. "
        "The same command resumes a run that was ended at any moment.",
    )
    parser.add_argument("--out", type=Path, default=Path("runs/reproduce"), help="folder of the run (%(default)s)")
    parser.add_argument("--hours", type=argument(Hours), help="end after this time (default: when all is done)")
    parser.add_argument("--seeds", type=argument(Positive), default=3, help="number of seeds (%(default)s)")
    parser.add_argument("--steps", type=argument(Positive), default=STEPS, help="steps of each training (%(default)s)")
    parser.add_argument(
        "--processes", type=argument(Positive), default=os.cpu_count(), help="trainings at once (%(default)s)"
    )
    parser.add_argument("--into", type=Path, help="folder of table and plots (default: the run's folder)")
    parser.add_argument("--report", action="store_true", help="train nothing, report what is done")
    given = parser.parse_args()
    data, weights = given.out / "data", given.out / "backbone.pt"
    report = [(given.into or given.out) / name for name in (PAGE, NUMBERS, CROSSINGS_PLOT, K_PLOT)]
    check_outputs([data, weights], {"--into": report}, "choose another folder")
    trainings = jobs(data, weights, given.seeds, given.steps)
    if not given.report:
        ends = time.monotonic() + (math.inf if given.hours is None else 3600 * given.hours)
        shapes.generate(data, shapes.Settings(train=4000, val=1000, size=SIDE))
        if not weights.exists():
            pretrain(data, weights)
        run(trainings, given.out, given.processes, ends - time.monotonic())
    print(f"report: {write_report(trainings, given.out, given.into or given.out)}")


if __name__ == "__main__":
    run_main(main)
