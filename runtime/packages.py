"""Detects a clash over the three top-level packages that the distribution installs: train, export and runtime.

    python -m runtime.packages

The names are common. Another distribution, or a folder earlier on Python's path, can bring a package of the same name.
Nothing is imported for the check. If `runtime` itself is taken, Python says "No module named runtime.packages".
"""

from __future__ import annotations

if __name__ == "__main__":  # before the other imports, which take their time: Ctrl-C ends them in one line
    from runtime.interrupts import end_at_once

    end_at_once()

import base64
import hashlib
import importlib.util
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

from .cli import DISTRIBUTION
from .command_names import program
from .command_parser import CommandParser
from .errors import UserError, run_main

PACKAGES = ("train", "export", "runtime")


def check_packages() -> list[str]:
    """Sentences about what clashes, empty where nothing does.

    Each package must be imported from beside this one. No other installed distribution may bring a package of that
    name, and each installed file must have the hash that its installer recorded. A clone that was never installed has
    no record: there, only the place is compared.
    """
    return [*_imported_from_elsewhere(), *_brought_by_others(), *_replaced_files()]


def _imported_from_elsewhere() -> list[str]:
    expected = Path(__file__).resolve().parents[1]
    problems = []
    for name in PACKAGES:
        spec = importlib.util.find_spec(name)
        if spec is None:
            problems.append(f"{name} cannot be imported; expected it in {expected}")
        elif spec.origin is None or Path(spec.origin).resolve().parent != expected / name:
            found = spec.origin or ", ".join(spec.submodule_search_locations or [])
            problems.append(f"{name} is imported from {found}; expected {expected / name}")
    return problems


def _brought_by_others() -> list[str]:
    owners = metadata.packages_distributions()
    return [
        f"{name} is also installed by {other}"
        for name in PACKAGES
        for other in sorted(set(owners.get(name, [])))
        if _normalized(other) != DISTRIBUTION
    ]


def _replaced_files() -> list[str]:
    """Files of an ordinary installation that are missing or that another installer has overwritten."""
    try:
        files = metadata.distribution(DISTRIBUTION).files or []
    except metadata.PackageNotFoundError:
        return []
    problems = []
    for file in files:
        if file.parts[0] not in PACKAGES or file.hash is None:
            continue
        path = Path(str(file.locate())).resolve()
        if not path.is_file():
            problems.append(f"{path} is missing")
        elif _digest(path, file.hash.mode) != file.hash.value:
            problems.append(f"{path} is not the file that {DISTRIBUTION} installed")
    return problems


def _digest(path: Path, algorithm: str) -> str:
    """A hash as RECORD spells it: base64 for URLs, without padding."""
    return base64.urlsafe_b64encode(hashlib.new(algorithm, path.read_bytes()).digest()).rstrip(b"=").decode()


def _normalized(name: str) -> str:
    return name.lower().replace("_", "-")


def main(arguments: Sequence[str] | None = None) -> None:
    """The command: say that nothing clashes. Raises UserError with every clash."""
    CommandParser(prog=program("runtime.packages"), description=(__doc__ or "").splitlines()[0]).parse_args(arguments)
    problems = check_packages()
    if problems:
        raise UserError(f"{'; '.join(problems)}. Install {DISTRIBUTION} into an environment of its own")
    print(f"{', '.join(PACKAGES)}: imported from {Path(__file__).resolve().parents[1]}, nothing else has these names")


if __name__ == "__main__":
    run_main(main)
