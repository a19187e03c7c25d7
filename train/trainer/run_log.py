"""The log of a run: JSON lines, TensorBoard's files, and lines on the terminal."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from runtime.errors import UserError
from runtime.files import atomic_write

from ..config import Config
from ..loss.criterion import Losses
from .progress import say

LOG = "log.jsonl"


class LogError(UserError):
    """A log with a line that isn't one of a run's."""


class RunLog:
    """The log of a run in its folder. A resumed run keeps the lines up to its first step and appends to them.

    Without `writes`, as in all processes but the first, no file is written, and only unreadable images are printed.
    """

    def __init__(self, out: Path, first_step: int, writes: bool = True) -> None:
        self.writes = writes
        if not writes:
            return
        path = out / LOG
        kept = [line for line in read_log(path) if line["step"] <= first_step] if first_step > 0 else []
        atomic_write(path, "".join(json.dumps(line) + "\n" for line in kept))
        self.file = path.open("a", encoding="utf-8")
        self.board = SummaryWriter(str(out / "tensorboard"), purge_step=first_step + 1 if first_step > 0 else None)

    def start(
        self,
        config: Config,
        device: torch.device,
        dtype: torch.dtype,
        processes: int,
        images: int,
        parameters: int,
    ) -> None:
        """Print the size of the model and of the run, and write the configuration to TensorBoard."""
        if not self.writes:
            return
        schedule = config.schedule
        where = f"{processes} × {device}" if processes > 1 else str(device)
        say(
            f"{config.recipe}: {parameters / 1e6:.1f} M parameters, {images} images, {schedule.steps} steps of "
            f"{schedule.batch} on {where}, {str(dtype).removeprefix('torch.')}"
        )
        self.board.add_text("config", f"```\n{json.dumps(dataclasses.asdict(config), indent=2)}\n```")

    def step(self, step: int, losses: Losses, grad_norm: Tensor, lr: float, images_per_second: float) -> None:
        """Log losses, learning rate and speed after `step` steps."""
        if not self.writes:
            return
        values = {name: value.item() for name, value in losses._asdict().items()}
        values |= {"grad_norm": grad_norm.item(), "lr": lr, "images_per_second": images_per_second}
        self._write("train", step, values)

    def evaluation(self, step: int, metrics: dict[str, float], limit: int) -> None:
        """Log and print COCO metrics (0–1) after `step` steps, of the first `limit` images (0: of all)."""
        if not self.writes:
            return
        self._write("val", step, metrics)
        part = f" (first {limit} images)" if limit else ""
        say(f"step {step}: AP {100 * metrics['AP']:.1f}  AP50 {100 * metrics['AP50']:.1f}{part}")

    def problems(self, problems: list[str]) -> None:
        """Print a warning for each image that could not be read."""
        for problem in problems:
            say(f"warning: skipped an image: {problem}")

    def _write(self, kind: str, step: int, values: dict[str, float]) -> None:
        self.file.write(json.dumps({"kind": kind, "step": step, **values}) + "\n")
        self.file.flush()
        for name, value in values.items():
            self.board.add_scalar(f"{kind}/{name}", value, step)

    def __enter__(self) -> RunLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.writes:
            self.file.close()
            self.board.close()


def _is_entry(line: dict[str, Any]) -> bool:
    """Whether an object is a line of a log: its kind, the step, and floats (or whole numbers that a float can hold)."""
    values = [value for name, value in line.items() if name != "kind"]
    numbers = all(
        value is None or isinstance(value, float) or (type(value) is int and abs(value) < 10**18) for value in values
    )
    return line.get("kind") in ("train", "val") and type(line.get("step")) is int and numbers


def read_log(path: Path) -> list[dict[str, Any]]:
    """The lines of a log as dictionaries with "kind" ("train" or "val") and "step"; none where there is no file.

    A last line that an interruption cut short is left out. Raises LogError for any other line that can't be read.
    """
    if not path.exists():
        return []
    texts = path.read_text(encoding="utf-8", errors="replace").splitlines()
    lines = []
    for number, text in enumerate(texts, start=1):
        try:
            line = json.loads(text)
        except (ValueError, RecursionError):
            line = None
        if isinstance(line, dict) and _is_entry(line):
            lines.append(line)
        elif number < len(texts):
            raise LogError(
                f"{path}, line {number}: {text[:40]!r} is not a line of a log, which is an object with kind and step; "
                "mend or delete that line"
            )
    return lines
