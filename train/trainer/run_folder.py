"""The folder of a run: none of its files is one that the run reads, and one run at a time works in it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from runtime.outputs import alone_in, check_outputs
from runtime.training_log import LOG

from ..config import Config
from ..layouts import annotation_files, parse_source
from ..tracking.trackers import IDS
from .distributed import World
from .elastic import CLAIM
from .start import BEST, LAST

RESTART_WAIT_S = 60.0  # torchrun may start processes anew on one node while those of another are still ending


@contextmanager
def run_folder(config: Config, out: Path, world: World) -> Iterator[None]:
    """Keep other runs out of `out` while the block runs; process 0 does so for all processes of the `world`.

    Raises OutputError, before anything is written, where another run works there, or where a file that the
    configuration names would be replaced.
    """
    if not world.is_main:
        yield
        return
    data, weights = config.data, config.model.backbone.weights
    reads = [data.train_json, data.train_images, data.val_json, data.val_images, config.run.init, weights]
    reads += [
        str(path) for source in (data.train, data.val) if source for path in annotation_files(parse_source(source))
    ]
    writes = [out / name for name in (LAST, BEST, LOG, CLAIM, IDS)]
    check_outputs([path for path in reads if path], {"--out": writes}, "choose another --out")
    with alone_in(out, RESTART_WAIT_S if "TORCHELASTIC_RUN_ID" in os.environ else 0.0):
        yield
