"""The run's curves as TensorBoard's files, in the folder `tensorboard` of the run."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager

from torch.utils.tensorboard import SummaryWriter

from .tracker import Facts, Place


class TensorBoardFiles:
    """A `Tracker` of files that TensorBoard reads. A resumed run hides what was written after its first step."""

    run_id = ""
    note = ""

    def __init__(self, place: Place) -> None:
        purge_step = place.first_step + 1 if place.first_step > 0 else None
        with ExitStack() as stack:
            stack.enter_context(_quiet_writer_threads())
            self._board = SummaryWriter(str(place.out / "tensorboard"), purge_step=purge_step)
            self._stack = stack.pop_all()

    def start(self, facts: Facts) -> None:
        """See `Tracker`."""
        self._board.add_text("config", f"```\n{json.dumps(dict(facts.settings), indent=2)}\n```")

    def log(self, kind: str, step: int, values: Mapping[str, float]) -> None:
        """See `Tracker`."""
        for name, value in values.items():
            self._board.add_scalar(f"{kind}/{name}", value, step)

    def close(self, finished: bool) -> None:
        """See `Tracker`."""
        with self._stack:
            self._board.close()


@contextmanager
def _quiet_writer_threads() -> Iterator[None]:
    """No traceback for a full disk from TensorBoard's thread, which hands the error to the next call as well."""
    before = threading.excepthook

    def report(happened: threading.ExceptHookArgs) -> None:
        if not (isinstance(happened.exc_value, OSError) and type(happened.thread).__name__ == "_AsyncWriterThread"):
            before(happened)

    threading.excepthook = report
    try:
        yield
    finally:
        threading.excepthook = before
