"""One job of a reproduction, in a process of its own: `python -m train.reproduce.worker FOLDER`."""

from __future__ import annotations

if __name__ == "__main__":  # before the other imports, which take their time: Ctrl-C ends them in one line
    from runtime.interrupts import end_at_once

    end_at_once()

import math
import sys
from pathlib import Path

import cv2
import torch

from runtime.coco.metrics import NOTHING, is_measured
from runtime.errors import run_main
from runtime.json_file import read_json_file
from runtime.outputs import alone_in
from runtime.records import record_from_dict
from runtime.training_log import LOG, read_log

from ..config import Config
from ..trainer.loop import train_detector
from .run import CONFIG, RESULT, TRAIN, Result, write_result


def work(folder: Path) -> None:
    """Train the configuration of a job's folder, from its last checkpoint if there is one, and write the result."""
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    # A killed run may have left a process that still trains in this folder: its result is taken then.
    with alone_in(folder, wait_s=math.inf):
        if (folder / RESULT).exists():
            return
        config = record_from_dict(Config, read_json_file(folder / CONFIG, "configuration"), str(folder))
        train_detector(config, folder / TRAIN, resume=True)
        evaluations = [line for line in read_log(folder / TRAIN / LOG) if line["kind"] == "val"]
        metrics = {name: value for name, value in evaluations[-1].items() if name not in ("kind", "step")}
        write_result(folder, Result(metrics, "") if is_measured(metrics) else Result({}, NOTHING))


if __name__ == "__main__":
    run_main(lambda: work(Path(sys.argv[1])))
