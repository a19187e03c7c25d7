"""What a run leaves to read: JSON lines, TensorBoard, and a line on the terminal for what matters."""

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
    """A log with a line in it that no run wrote."""


class RunLog:
    """Log of a run in a folder; a resumed run goes on with the lines up to its first step.

    Without `writes` it leaves no files and says only which images could not be read.
    """

    def __init__(self, out: Path, first_step: int, writes: bool = True) -> None:
        self.unreadable = 0
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
        """Say what is about to happen."""
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
        """Losses and speed after `step` steps."""
        if not self.writes:
            return
        values = {name: value.item() for name, value in losses._asdict().items()}
        values |= {"grad_norm": grad_norm.item(), "lr": lr, "images_per_second": images_per_second}
        self._write("train", step, values)

    def evaluation(self, step: int, figures: dict[str, float], limit: int) -> None:
        """COCO figures after `step` steps."""
        if not self.writes:
            return
        self._write("val", step, figures)
        part = f" (first {limit} images)" if limit else ""
        say(f"step {step}: AP {100 * figures['AP']:.1f}  AP50 {100 * figures['AP50']:.1f}{part}")

    def problems(self, problems: list[str]) -> None:
        """Images that could not be read: each is named once on the terminal."""
        for problem in problems:
            self.unreadable += 1
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


def read_log(path: Path) -> list[dict[str, Any]]:
    """The lines of a log; a last line that an interruption cut short is left out. Raises LogError for any other."""
    if not path.exists():
        return []
    texts = path.read_text(encoding="utf-8", errors="replace").splitlines()
    lines = []
    for number, text in enumerate(texts, start=1):
        try:
            line = json.loads(text)
        except ValueError:
            line = None
        if isinstance(line, dict) and {"kind", "step"} <= line.keys():
            lines.append(line)
        elif number < len(texts):
            raise LogError(
                f"{path}, line {number}: {text[:40]!r} is no line of a log, expected an object with kind and step; "
                "mend or delete that line"
            )
    return lines
