"""Going on after `torchrun --max-restarts` has started the processes anew.

A run that torchrun starts leaves a file with torchrun's id in its folder. Processes of the same torchrun that find it
continue the run. A folder that holds the run of somebody else has no such file, and is refused as without torchrun, at
the first start and at all restarts.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

from runtime.bounds import Name
from runtime.errors import UserError
from runtime.files import atomic_write
from runtime.json_file import read_json_file
from runtime.records import record_from_dict

from .distributed import World, all_gather
from .start import LAST


@dataclass(frozen=True)
class Claim:
    """What the file holds that torchrun's run leaves in its folder."""

    run_id: Name


CLAIM = "torchrun.json"  # in the folder of the run
UNNAMED = "none"  # torchrun's id where no --rdzv-id was given: every such start has it


def continues(out: Path, resume: bool, world: World) -> bool:
    """Whether the run in `out` is continued: with `resume`, and where this torchrun began it and has restarted.

    Process 0 decides, writes the claim and tells the others. A torchrun with an --rdzv-id of its own continues the run
    that has this id at any start, as when a node is replaced or Slurm requeues the job.
    """
    run_id = os.environ.get("TORCHELASTIC_RUN_ID")
    if run_id is None:
        return resume
    # torchrun counts the restarts of a node whose own process failed, and not those of the other nodes.
    has_restarted = any(all_gather(restart_count() > 0, world)) or run_id != UNNAMED
    continued = _claim(out, run_id, resume, has_restarted) if world.is_main else None
    return all_gather(continued, world)[0]


def _claim(out: Path, run_id: str, resume: bool, has_restarted: bool) -> bool:
    """Whether the run is continued; a run that is this torchrun's has its claim then."""
    is_ours = _claimed_by(out) == run_id
    continued = resume or (has_restarted and is_ours)
    if not continued and (out / LAST).exists():
        # This start is refused, and so must be its restarts: an earlier torchrun without an id had the same claim.
        if is_ours:
            (out / CLAIM).unlink(missing_ok=True)
    elif not is_ours:
        atomic_write(out / CLAIM, json.dumps({"run_id": run_id}) + "\n")
    return continued


def restart_count() -> int:
    """How often torchrun has started the processes of this node anew because one of them failed; 0 without torchrun."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def _claimed_by(out: Path) -> str | None:
    """The id of the torchrun that began the run in `out`; None where no torchrun did."""
    try:
        return record_from_dict(Claim, read_json_file(out / CLAIM, "claim"), str(out)).run_id
    except UserError:
        return None
