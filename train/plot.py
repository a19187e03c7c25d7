"""Draw the loss and AP curves of a run from its log.

python -m train.plot runs/NAME            # → runs/NAME/curves.png
"""

from __future__ import annotations

if __name__ == "__main__":  # before the other imports, which take their time: Ctrl-C ends them in one line
    from runtime.interrupts import end_at_once

    end_at_once()

from pathlib import Path

import matplotlib

from runtime.command_names import program
from runtime.command_parser import CommandParser
from runtime.errors import UserError, run_main
from runtime.files import atomic_path
from runtime.outputs import check_outputs
from runtime.training_log import LOG, read_log

LOSSES = ("classification", "box", "centerness")


def plot_run(folder: Path) -> Path:
    """Draw the curves of the run in `folder` into its `curves.png` and return the path.

    Raises UserError where the run has logged no training step.
    """
    path = folder / "curves.png"
    check_outputs([folder / LOG], {"the drawing": path}, "remove it")
    lines = read_log(folder / LOG)
    steps = [line for line in lines if line["kind"] == "train"]
    evaluations = [line for line in lines if line["kind"] == "val"]
    if not steps:
        raise UserError(f"no training steps in {folder / LOG}: give the --out folder of a run that has logged some")
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    for name in LOSSES:
        left.plot([line["step"] for line in steps], [line[name] for line in steps], label=name, linewidth=1)
    left.set(xlabel="step", ylabel="loss", ylim=(0, None))
    left.legend()
    for name in ("AP", "AP50", "AP75"):
        points = [(line["step"], 100 * line[name]) for line in evaluations if line[name] >= 0]  # −1: nothing measured
        right.plot(*zip(*points, strict=True) if points else ([], []), marker="o", label=name)
    right.set(xlabel="step", ylabel="COCO AP (of 100)", xlim=(0, None), ylim=(0, 100))
    right.legend()
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=110)
    plt.close(figure)
    return path


def main() -> None:
    """The command: draw the curves of a run and print their path."""
    parser = CommandParser(prog=program("train.plot"), description=__doc__.split("\n")[0])
    parser.add_argument("run", type=Path, help="the --out folder of a training run")
    print(plot_run(parser.parse_args().run))


if __name__ == "__main__":
    run_main(main)
