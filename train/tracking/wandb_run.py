"""The run in Weights & Biases. Nothing leaves the machine unless the user sets WANDB_MODE=online."""

from __future__ import annotations

import os
import shlex
import uuid
from collections.abc import Mapping
from typing import Any

from .tracker import Facts, Place

PROJECT = "atss"  # where WANDB_PROJECT names none


class WandbRun:
    """A `Tracker` of one run of W&B, offline by default: `wandb sync` sends such a run later.

    WANDB_MODE, WANDB_PROJECT, WANDB_ENTITY and WANDB_DIR mean what they mean to W&B. A resumed run keeps its id, so
    that both parts become one run.
    """

    def __init__(self, place: Place) -> None:
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # read when wandb is imported
        import wandb

        self.run_id = place.run_id or uuid.uuid4().hex[:12]
        mode: Any = os.environ.get("WANDB_MODE") or "offline"  # W&B refuses an empty one
        # No output is captured and no code is copied: the terminal and the user's own repository have them.
        settings = wandb.Settings(console="off", silent=True, disable_git=True, save_code=False)
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=os.environ.get("WANDB_NAME", place.out.resolve().name),
            id=self.run_id,
            resume="allow",
            mode=mode,  # W&B itself reads the variable once a process
            dir=os.environ.get("WANDB_DIR", str(place.out)),
            settings=settings,
        )
        # W&B's own counter drops a step that isn't above the last one, as after a resume from an earlier checkpoint.
        self._run.define_metric("*", step_metric="step")

    @property
    def note(self) -> str:
        """See `Tracker`."""
        if self._run.disabled:
            return ""
        if self._run.offline:
            folder = os.path.dirname(self._run.dir)
            return f"W&B: run {self.run_id}, offline; send it with: wandb sync {shlex.quote(folder)}"
        return f"W&B: {self._run.url or self._run.dir}"

    def start(self, facts: Facts) -> None:
        """See `Tracker`."""
        self._run.config.update(dict(facts.settings), allow_val_change=True)
        self._run.summary.update({**facts.machine, **facts.files})

    def log(self, kind: str, step: int, values: Mapping[str, float]) -> None:
        """See `Tracker`."""
        self._run.log({"step": step, **{f"{kind}/{name}": value for name, value in values.items()}})

    def close(self, finished: bool) -> None:
        """See `Tracker`."""
        self._run.finish(exit_code=0 if finished else 1)
        if not finished:
            import wandb

            wandb.teardown()  # a signal ends all child processes; W&B's own may not be ended before its connection
