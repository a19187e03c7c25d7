"""What each process of two tests runs, with as few imports as can be: python -m tests.support.failing_rank HOW."""

from __future__ import annotations

import os
import signal
import sys
import time

import torch

from runtime.errors import UserError, run_main
from train.trainer.distributed import all_reduce, process_group


def main() -> None:
    """Process 1 fails or is killed; 0 waits for it in a collective, 2 is busy on its own."""
    with process_group(use_cuda=False) as world:
        for step in range(10_000):
            if world.rank == 1 and step == 3:
                if sys.argv[1] == "kill":
                    os.kill(os.getpid(), signal.SIGKILL)
                raise UserError("the disk is full")
            if world.rank == 2 and step == 3:
                time.sleep(120)
            all_reduce(torch.ones(2), world)


if __name__ == "__main__":
    run_main(main)
