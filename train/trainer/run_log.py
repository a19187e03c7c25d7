"""The log of a run: JSON lines, the trackers that the run has, and lines on the terminal."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

import torch
from torch import Tensor

from runtime.coco.metrics import NOTHING, is_measured
from runtime.coco.report import percent
from runtime.files import as_utf8, atomic_write, write_all, write_error
from runtime.training_log import LOG, LogError, read_log

from ..config import Config, TrackerName
from ..config.learning_rate import unmatched_learning_rate
from ..config.overrides import settings_by_name
from ..loss.criterion import Losses
from ..tracking.machine import machine_facts
from ..tracking.tracker import Facts, Setting
from ..tracking.trackers import Trackers
from .progress import say
from .skipped import Skipped
from .start import BEST, LAST
from .stopping import idle_patience


class RunLog:
    """The log of a run in its folder. A resumed run keeps the lines up to its first step and appends to them.

    Without `writes`, as in all processes but the first, no file is written, and only unreadable images are printed. A
    full disk raises WriteError for the log. `trackers` get the same numbers; one that fails ends with a warning.
    """

    def __init__(
        self, out: Path, first_step: int, writes: bool = True, trackers: Sequence[TrackerName] = ("tensorboard",)
    ) -> None:
        self.writes = writes
        self.skipped = Skipped()
        if not writes:
            return
        if "tensorboard" in trackers and as_utf8(str(out)) != str(out):
            raise LogError(f"{out}: TensorBoard takes no folder whose name is not UTF-8; rename it, or choose another")
        path = out / LOG
        kept = [line for line in read_log(path) if line["step"] <= first_step] if first_step > 0 else []
        atomic_write(path, "".join(json.dumps(line) + "\n" for line in kept))
        self.path = path
        self.file = path.open("ab", buffering=0)  # a buffer would be written again, and fail again, when it is closed
        self.trackers = Trackers(trackers, out, first_step, say, LOG)

    def start(
        self,
        config: Config,
        device: torch.device,
        dtype: torch.dtype,
        processes: int,
        images: int,
        parameters: int,
    ) -> None:
        """Print the size of the model and of the run, and hand the configuration to the trackers."""
        if not self.writes:
            return
        schedule = config.schedule
        where = f"{processes} × {device}" if processes > 1 else str(device)
        say(
            f"{config.recipe}: {parameters / 1e6:.1f} M parameters, {images} images, {schedule.steps} steps of "
            f"{schedule.batch} on {where}, {str(dtype).removeprefix('torch.')}"
        )
        # Advice, not a warning: a warning says that something is wrong or lost, and a short trial may keep the rate.
        if (advice := unmatched_learning_rate(config)) is not None:
            say(f"note: {advice}")
        if (idle := idle_patience(config)) is not None:
            say(f"warning: {idle}")
        size: dict[str, Setting] = {
            "parameters": parameters,
            "images": images,
            "processes": processes,
            "dtype": str(dtype),
        }
        files = {name: str((self.path.parent / name).resolve()) for name in (LAST, BEST, LOG)}
        self.trackers.start(Facts(settings_by_name(config), {**machine_facts(device), **size}, files))

    def step(self, step: int, losses: Losses, grad_norm: Tensor, lr: float, images_per_second: float) -> None:
        """Log losses, learning rate and speed after `step` steps."""
        if not self.writes:
            return
        values = {name: value.item() for name, value in losses._asdict().items()}
        values |= {"grad_norm": grad_norm.item(), "lr": lr, "images_per_second": images_per_second}
        self._write("train", step, values)

    def evaluation(self, step: int, metrics: dict[str, float], limit: int) -> None:
        """Log and print COCO metrics (0–1) after `step` steps, of the first `limit` images (0: of all).

        The log has −1 for a metric without objects, as pycocotools; trackers and the terminal have no such figure. It
        has the limit where there is one: an AP of few images must not be taken for the best.
        """
        if not self.writes:
            return
        self._write("val", step, metrics, {"limit": limit} if limit else {})
        part = f" (first {limit} images)" if limit else ""
        figures = f"AP {percent(metrics['AP'])}  AP50 {percent(metrics['AP50'])}"
        say(f"step {step}: {figures if is_measured(metrics) else NOTHING}{part}")

    def stopped(self, step: int, best_ap: float, evaluations: int) -> None:
        """Log that early stopping ended the run: the highest AP (0–1), and how many evaluations ago it was."""
        if self.writes:
            self._write("stop", step, {"best_ap": best_ap, "evaluations_since": evaluations})

    def say(self, line: str) -> None:
        """Print a line, from one of several processes."""
        if self.writes:
            say(line)

    def problems(self, problems: list[str]) -> None:
        """Print a warning for each image that could not be read, once in the run of this process."""
        for line in self.skipped.add(problems):
            say(line)

    def _write(self, kind: str, step: int, values: dict[str, float], conditions: Mapping[str, int] = {}) -> None:
        line = (json.dumps({"kind": kind, "step": step, **values, **conditions}) + "\n").encode()
        try:
            write_all(self.file, line)
        except OSError as error:
            raise write_error(self.path, error) from error
        self.trackers.log(kind, step, {name: value for name, value in values.items() if kind != "val" or value >= 0})

    def __enter__(self) -> RunLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.writes:
            self.file.close()
            self.trackers.close(finished=error is None)
