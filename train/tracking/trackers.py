"""The trackers of a run: `TRACKERS` holds the choices of `run.log`. What fails in one never ends a training."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import json
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, NamedTuple, TypeVar

from runtime.bounds import Pattern
from runtime.errors import UserError, describe_os_error
from runtime.files import atomic_write
from runtime.json_file import read_json_file
from runtime.records import record_from_dict

from ..config import TrackerName
from ..tables import part_of
from .mlflow_run import MlflowRun
from .tensorboard_files import TensorBoardFiles
from .tracker import Facts, Place, Tracker
from .wandb_run import WandbRun

IDS = "trackers.json"  # the trackers' own ids of the run, for a resumed run
RunId = Annotated[str, Pattern("[A-Za-z0-9_-]{0,64}", "an id of at most 64 letters, digits, _ and -")]
Result = TypeVar("Result")


class Kind(NamedTuple):
    """A tracker as `run.log` offers it."""

    title: str  # what it writes, as messages name it
    library: str  # the module that it imports
    extra: str  # the extra of the toolkit that brings the library
    open: Callable[[Place], Tracker]


# A new one is a name in the configuration's `TrackerName`, a class beside the others, and its entry here.
TRACKERS: dict[TrackerName, Kind] = {
    "tensorboard": Kind("TensorBoard's files", "tensorboard", "train", TensorBoardFiles),
    "wandb": Kind("the run in W&B", "wandb", "wandb", WandbRun),
    "mlflow": Kind("the run in MLflow", "mlflow", "mlflow", MlflowRun),
}


@dataclasses.dataclass(frozen=True)
class Ids:
    """The content of `trackers.json`: the run's id in each tracker that has such ids."""

    wandb: RunId = dataclasses.field(default="", metadata={"absent": ""})
    mlflow: RunId = dataclasses.field(default="", metadata={"absent": ""})


def read_ids(path: Path) -> Ids:
    """The ids that a run left; none where there is no file. Raises UserError for a file that can't be read."""
    if not path.exists():
        return Ids()
    return record_from_dict(Ids, read_json_file(path, "ids of trackers"), str(path))


def require_trackers(names: Sequence[TrackerName]) -> None:
    """Raise UserError where the library of a tracker isn't installed; nothing is imported."""
    for name in names:
        kind = part_of(TRACKERS, name, "run.log")
        found = importlib.util.find_spec(kind.library)
        if found is None or found.origin is None:  # a folder of that name, such as one that wandb left, is no library
            raise UserError(
                f"--run.log {name} needs {kind.library}, which is not installed: install atss-toolkit with the extra "
                f"{kind.extra}, or give another --run.log"
            )


def without_passwords(text: str) -> str:
    """A text whose addresses lack user names and passwords, since messages end in the logs of jobs."""
    return re.sub(r"(?<=://)[^/?#\s]*@", "", text)


class Trackers:
    """The open trackers of a run. One that fails is closed with one warning, and the others go on.

    `say` prints a line; `log_name` is the file that the warning names, since it has the same numbers.
    """

    def __init__(
        self, names: Sequence[TrackerName], out: Path, first_step: int, say: Callable[[str], None], log_name: str
    ) -> None:
        self._say, self._log_name, self._path = say, log_name, out / IDS
        self._open: dict[TrackerName, Tracker] = {}
        if first_step == 0:  # ids of a run that left no checkpoint; where they can't be removed, the trackers warn
            with contextlib.suppress(OSError):
                self._path.unlink(missing_ok=True)
        for name in names:
            tracker = self._try(name, partial(self._opened, name, out, first_step))
            if tracker is not None:
                self._open[name] = tracker

    def _opened(self, name: TrackerName, out: Path, first_step: int) -> Tracker:
        ids = read_ids(self._path)
        known = getattr(ids, name, "") if first_step > 0 else ""
        tracker = TRACKERS[name].open(Place(out, first_step, known))
        if tracker.run_id != known:
            kept = dataclasses.replace(ids, **{name: tracker.run_id})
            atomic_write(self._path, json.dumps(dataclasses.asdict(kept)) + "\n")
        return tracker

    def start(self, facts: Facts) -> None:
        """Tell the trackers what is known before the first step, and the user where the run is in each."""
        for name, tracker in list(self._open.items()):
            self._try(name, partial(self._started, tracker, facts))

    def _started(self, tracker: Tracker, facts: Facts) -> None:
        tracker.start(facts)
        if tracker.note:
            self._say(without_passwords(tracker.note))

    def log(self, kind: str, step: int, values: Mapping[str, float]) -> None:
        """Hand on the numbers of a line of the log, of kind "train", "val" or "stop", after `step` steps."""
        for name, tracker in list(self._open.items()):
            self._try(name, partial(tracker.log, kind, step, values))

    def close(self, finished: bool) -> None:
        """Close all; not `finished`: an error or a signal ended the run."""
        closing, self._open = self._open, {}
        for name, tracker in closing.items():
            self._try(name, partial(tracker.close, finished))

    def _try(self, name: TrackerName, call: Callable[[], Result]) -> Result | None:
        """What a call returns; where it raises, a warning, and the tracker is used no more."""
        try:
            return call()
        except Exception as error:  # whatever a tracker's library raises
            reason = describe_os_error(error) if isinstance(error, OSError) else str(error) or type(error).__name__
            reason = without_passwords(" ".join(reason.split()))[:300]
            self._say(f"warning: cannot write {TRACKERS[name].title}: {reason}; {self._log_name} has the same numbers")
        failed = self._open.pop(name, None)
        if failed is not None:
            with contextlib.suppress(Exception):  # a process of its own would go on running
                failed.close(finished=False)
        return None
