"""A long run over all targets: counts what was accepted and refused, and keeps every input that failed.

    scripts/fuzz.sh --inputs 20000 --minutes 25
    scripts/fuzz.sh --only "annotations" --only JPEG --inputs 2000
    scripts/fuzz.sh --again FOLDER/failures/1        # one kept input once more

Inputs are made in pieces of a fixed seed, so that a run is the same each time; FOLDER/log.jsonl says which are done,
and a second run with the same folder goes on behind them.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import shutil
import sys
import threading
import time
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings

from .process import Outcome, Reader
from .seeds import make_seeds
from .target import Files
from .targets import TARGETS

PIECE = 50  # inputs that are made from one seed
KEPT = 5  # failures of one kind whose inputs are kept


@dataclass
class Row:
    """What became of a target's inputs."""

    inputs: int = 0
    accepted: int = 0
    refused: int = 0
    seconds: float = 0.0  # of the slowest
    memory: int = 0  # of the largest, bytes
    failures: dict[str, int] = field(default_factory=dict)  # by kind

    def add(self, piece: dict[str, Any]) -> None:
        """Count a piece of the log."""
        self.inputs += piece["inputs"]
        self.accepted += piece["accepted"]
        self.refused += piece["refused"]
        self.seconds = max(self.seconds, piece["seconds"])
        self.memory = max(self.memory, piece["memory"])
        for kind in piece["failures"]:
            self.failures[kind] = self.failures.get(kind, 0) + 1


def kind_of(outcome: Outcome) -> str:
    """A failure without what differs from input to input: two of one kind have one cause."""
    parts = outcome.detail.split(": ")
    told = ": ".join(parts[:2]) if parts[0] in ("nonsense", "crash", "printed") else parts[0]
    return re.sub(r"'[^']*'|\S*[\d/_]\S*(\.\S+)*", "…", told.splitlines()[0])[:80]


class Run:
    """A run in a folder. Any number of threads may do its pieces."""

    def __init__(self, folder: Path, said: bool = True) -> None:
        self._folder, self._said = folder, said
        self._log, self._lock = folder / "log.jsonl", threading.Lock()
        self.seeds = folder / "seeds"
        self.rows = {name: Row() for name in TARGETS}
        self.done: set[tuple[str, int]] = set()
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "seeds.done").exists():
            make_seeds(self.seeds)
            (folder / "seeds.done").touch()
        for line in self._log.read_text().splitlines() if self._log.exists() else ():
            piece = json.loads(line)
            if piece["target"] in self.rows:
                self._count(piece)

    def _count(self, piece: dict[str, Any]) -> None:
        self.done.add((piece["target"], piece["number"]))
        self.rows[piece["target"]].add(piece)

    def do(self, reader: Reader, target: str, number: int) -> None:
        """Make and read a piece of a target's inputs, and log it."""
        outcomes: list[Outcome] = []

        @seed(zlib.crc32(f"{target} {number}".encode()))
        @settings(
            max_examples=PIECE,
            phases=[Phase.generate],
            database=None,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        )
        @given(TARGETS[target].inputs(self.seeds).map(Files))
        def read(files: Files) -> None:
            outcome = reader.read(target, files)
            outcomes.append(outcome)
            if outcome.kind == "failed":
                self._keep(target, outcome, reader.input)

        read()
        kinds = [outcome.kind for outcome in outcomes]
        piece = {
            "target": target,
            "number": number,
            "inputs": len(outcomes),
            "accepted": kinds.count("accepted"),
            "refused": kinds.count("refused"),
            "seconds": round(max((one.seconds for one in outcomes), default=0), 3),
            "memory": max((one.memory for one in outcomes), default=0),
            "failures": [kind_of(one) for one in outcomes if one.kind == "failed"],
        }
        with self._lock:
            self._count(piece)
            with self._log.open("a") as file:
                file.write(json.dumps(piece) + "\n")

    def _keep(self, target: str, outcome: Outcome, folder: Path) -> None:
        """Copy an input that failed, unless enough of its kind are there."""
        with self._lock:
            kept = self._folder / "failures"
            index = kept / "index.jsonl"
            kept.mkdir(exist_ok=True)
            known = [json.loads(line) for line in index.read_text().splitlines()] if index.exists() else []
            kind = kind_of(outcome)
            if sum(one["target"] == target and one["kind"] == kind for one in known) >= KEPT:
                return
            place = kept / str(len(known) + 1)
            shutil.copytree(folder, place)
            with index.open("a") as file:
                said = {"number": place.name, "target": target, "kind": kind, "detail": outcome.detail}
                file.write(json.dumps(said, ensure_ascii=False) + "\n")
            if self._said:
                print(f"FAILED {place.name}: {target}: {outcome.detail[:300]}", flush=True)

    def table(self) -> str:
        """The counts as a table in Markdown."""
        head = (
            "| target | inputs | accepted | refused | failed | slowest, s | most memory, MB |\n| --- "
            + "| ---: " * 6
            + "|"
        )
        lines = [
            f"| {name} | {row.inputs} | {row.accepted} | {row.refused} | {row.inputs - row.accepted - row.refused} | "
            f"{row.seconds:.2f} | {row.memory / 1e6:.0f} |"
            for name, row in self.rows.items()
            if row.inputs
        ]
        rows = self.rows.values()
        inputs, accepted, refused = (
            sum(getattr(row, name) for row in rows) for name in ("inputs", "accepted", "refused")
        )
        lines.append(
            f"| all | {inputs} | {accepted} | {refused} | {inputs - accepted - refused} | "
            f"{max(row.seconds for row in rows):.2f} | {max(row.memory for row in rows) / 1e6:.0f} |"
        )
        kinds = [
            f"- {name}: {count} × {kind}" for name, row in self.rows.items() for kind, count in row.failures.items()
        ]
        return "\n".join([head, *lines, *(["", "Failures:", *kinds] if kinds else [])]) + "\n"

    @property
    def has_failed(self) -> bool:
        """Whether any input failed."""
        return any(row.failures for row in self.rows.values())


def shares(names: Sequence[str], inputs: int) -> dict[str, int]:
    """How many inputs each target gets, by its weight; at least `inputs` together."""
    whole = sum(TARGETS[name].weight for name in names)
    return {name: math.ceil(inputs * TARGETS[name].weight / whole) for name in names}


def main(arguments: Sequence[str] | None = None) -> int:
    """The command: 1 where an input failed."""
    parser = argparse.ArgumentParser(prog="scripts/fuzz.sh", description=__doc__.splitlines()[0])
    parser.add_argument("--inputs", type=int, default=20_000, help="in all (%(default)s)")
    parser.add_argument("--minutes", type=float, default=60.0, help="end after this time (%(default)s)")
    parser.add_argument("--only", action="append", choices=sorted(TARGETS), metavar="TARGET", help="one of several")
    parser.add_argument("--out", type=Path, default=Path("runs/fuzz"), help="folder of the run (%(default)s)")
    parser.add_argument("--jobs", type=int, default=2, help="worker processes at once (%(default)s)")
    parser.add_argument("--again", type=Path, metavar="FOLDER", help="read one kept input again, and say what happens")
    options = parser.parse_args(arguments)
    run = Run(options.out.resolve())
    if options.again is not None:
        return _again(run, options.again.resolve())
    ends = time.monotonic() + 60 * options.minutes
    wanted = shares(options.only or list(TARGETS), options.inputs)
    pieces = sorted((number, name) for name, count in wanted.items() for number in range(-(-count // PIECE)))
    waiting = iter([(name, number) for number, name in pieces if (name, number) not in run.done])
    lock = threading.Lock()

    def work(job: int) -> None:
        with Reader(run.seeds, options.out.resolve() / f"work{job}") as reader:
            while time.monotonic() < ends:
                with lock:
                    piece = next(waiting, None)
                if piece is None:
                    return
                run.do(reader, *piece)

    with ThreadPoolExecutor(options.jobs) as pool:
        for done in [pool.submit(work, job) for job in range(options.jobs)]:
            done.result()
    table = run.table()
    (options.out / "table.md").write_text(table)
    print(table)
    return 1 if run.has_failed else 0


def _again(run: Run, folder: Path) -> int:
    index = [json.loads(line) for line in (folder.parent / "index.jsonl").read_text().splitlines()]
    target = next(one["target"] for one in index if one["number"] == folder.name)
    with Reader(run.seeds, folder.parent / "again") as reader:
        files = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        outcome = reader.read(target, files)
    print(f"{target}: {outcome.kind}: {outcome.detail} ({outcome.seconds:.2f} s, {outcome.memory / 1e6:.0f} MB)")
    return 1 if outcome.kind == "failed" else 0


if __name__ == "__main__":
    sys.exit(main())
