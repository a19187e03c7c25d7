"""Going on after `torchrun --max-restarts` has started the processes anew.

A run that torchrun starts leaves a file with torchrun's id in its folder. Processes of the same torchrun that find it
continue the run. A folder that holds the run of somebody else has no such file, and is refused as without torchrun, at
the first start and at all restarts.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from runtime.files import atomic_write

from .distributed import World
from .start import LAST

CLAIM = "torchrun.json"  # in the folder of the run
UNNAMED = "none"  # torchrun's id where no --rdzv-id was given: every such start has it


def continues(out: Path, resume: bool, world: World) -> bool:
    """Whether the run in `out` is continued: with `resume`, and where this torchrun began it and has restarted.

    All processes get the same answer; process 0 writes the claim. A torchrun with an --rdzv-id of its own continues
    the run that has this id at any start, as when a node is replaced or Slurm requeues the job.
    """
    run_id = os.environ.get("TORCHELASTIC_RUN_ID")
    if run_id is None:
        return resume
    has_restarted = restart_count() > 0 or run_id != UNNAMED
    is_ours = _claimed_by(out) == run_id
    continued = resume or (has_restarted and is_ours)
    if not continued and (out / LAST).exists():
        # This start is refused, and so must be its restarts: an earlier torchrun without an id had the same claim.
        if world.is_main and is_ours:
            (out / CLAIM).unlink(missing_ok=True)
    elif world.is_main and not is_ours:
        atomic_write(out / CLAIM, json.dumps({"run_id": run_id}) + "\n")
    return continued


def restart_count() -> int:
    """How often torchrun has started the processes anew because one failed; 0 without torchrun."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def _claimed_by(out: Path) -> str | None:
    """The id of the torchrun that began the run in `out`; None where no torchrun did."""
    try:
        return json.loads((out / CLAIM).read_text(encoding="utf-8"))["run_id"]
    except (OSError, ValueError, TypeError, KeyError):
        return None
