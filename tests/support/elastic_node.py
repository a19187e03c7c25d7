"""What the process of each node of `test_elastic.py` runs under torchrun: python -m tests.support.elastic_node OUT.

At the first start the run gets its checkpoint, and process 1 is killed. After the restart each process writes what it
was told.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

from train.trainer.distributed import all_gather, process_group
from train.trainer.elastic import continues, restart_count
from train.trainer.start import LAST


def main() -> None:
    out = Path(sys.argv[1])
    with process_group(use_cuda=False) as world:
        continued = continues(out, False, world)
        if not (out / LAST).exists():
            all_gather(None, world)
            if world.is_main:
                (out / LAST).touch()
            all_gather(None, world)
            if world.rank == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(60)  # until torchrun ends this process too: it did not fail
        all_gather(None, world)
        answer = {"restarts": restart_count(), "continues": continued}
        (out / f"{world.rank}.json").write_text(json.dumps(answer))


if __name__ == "__main__":
    main()
