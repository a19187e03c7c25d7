"""Readers with a fault each, by which the harness is tested."""

from __future__ import annotations

import ctypes
import os
import time
import warnings
from pathlib import Path

import numpy as np
from hypothesis import strategies as st

from runtime.errors import UserError

from .target import Target, require


def _key_error(folder: Path, seeds: Path) -> object:
    return {}["annotations"]


def _nonsense(folder: Path, seeds: Path) -> None:
    require(b"valid" in (folder / "a").read_bytes(), "a file without sense was accepted")


def _sleep(folder: Path, seeds: Path) -> None:
    time.sleep(1.1)


def _hang(folder: Path, seeds: Path) -> None:
    time.sleep(1000)


def _allocate(folder: Path, seeds: Path) -> int:
    return len(np.ones(3 << 30, np.uint8))


def _allocate_slowly(folder: Path, seeds: Path) -> int:
    return sum(len(part) for part in [np.ones(1 << 20, np.uint8) for _ in range(350)])


def _hidden_allocation(folder: Path, seeds: Path) -> object:
    try:
        return np.ones(1 << 40, np.uint8)
    except MemoryError as error:
        raise UserError(f"cannot read it ({error})") from error


def _segfault(folder: Path, seeds: Path) -> None:
    ctypes.string_at(0)


def _abort(folder: Path, seeds: Path) -> None:
    os.abort()


def _print(folder: Path, seeds: Path) -> None:
    os.write(2, b"libpng warning: something\n")


def _warn(folder: Path, seeds: Path) -> None:
    warnings.warn("overflow", RuntimeWarning, stacklevel=1)


def _refuse(folder: Path, seeds: Path) -> None:
    raise UserError("a.json: no image; give another file")


def _accept(folder: Path, seeds: Path) -> str:
    return "read"


_READERS = (
    *(_key_error, _nonsense, _sleep, _hang, _allocate, _allocate_slowly, _hidden_allocation, _segfault, _abort, _print),
    *(_warn, _refuse, _accept),
)
PLANTED = {
    f"planted {reader.__name__.strip('_')}": Target(lambda seeds: st.just({"a": b"x"}), reader) for reader in _READERS
}
