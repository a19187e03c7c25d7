"""What each process of `test_elastic.py` runs under torchrun: python -m tests.support.elastic_rank SETTINGS.json OUT.

One run goes through, of the first start alone; in the other, process 1 is killed at the first start, and fails with a
message at the second.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import torch

from runtime.errors import UserError, run_main
from runtime.records import record_from_dict
from tests.support.ranks import patched
from train.config import Config
from train.loss.criterion import Losses
from train.trainer.distributed import process_group
from train.trainer.elastic import restart_count
from train.trainer.loop import train_detector

KILLED_AT, FAILS_AT = 4, 2  # the criterion's calls, from 0, of the first and of the second start


def main() -> None:
    torch.set_num_threads(1)
    config, out = record_from_dict(Config, json.loads(Path(sys.argv[1]).read_text()), "test"), Path(sys.argv[2])
    start = restart_count()
    with process_group(use_cuda=False) as world:
        if start == 0:
            train_detector(config, out / "through", world=world)

        def disturbed(call: int, losses: Losses) -> Losses:
            if world.rank == 1 and start == 0 and call == KILLED_AT:
                os.kill(os.getpid(), signal.SIGKILL)
            if world.rank == 1 and start == 1 and call == FAILS_AT:
                raise UserError("the disk is full")
            return losses

        with patched(disturbed):
            train_detector(config, out / "disturbed", world=world)
        if world.is_main:
            (out / "starts.txt").write_text(str(start + 1))


if __name__ == "__main__":
    run_main(main)
