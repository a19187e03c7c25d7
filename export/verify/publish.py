"""A file gets its name only after it was compared with what it was made of."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from runtime.files import atomic_path

from .checks import Check, print_report


class _Differs(Exception):
    """The file's numbers are not those that it was made of: it must not take its name."""


def publish(out: Path, make: Callable[[], bytes], compare: Callable[[Path], Sequence[Check]]) -> bool:
    """Write what `make` returns to `out` if all of `compare`'s checks pass; print them, and return whether they did.

    A file that fails is kept as NAME.failed.onnx; one that stood there is replaced only by one that passed.
    """
    failed = out.with_name(f"{out.stem}.failed.onnx")
    try:
        with atomic_path(out) as temporary:  # opened first: an unwritable folder should not cost an export
            temporary.touch()
            temporary.write_bytes(make())
            print("comparing it …", flush=True)
            checks = compare(temporary)
            print_report(checks)
            if not all(check.passed for check in checks):
                os.replace(temporary, failed)
                raise _Differs
    except _Differs:
        print(f"NOT written: the numbers differ too much. The file is kept for inspection as {failed}")
        return False
    failed.unlink(missing_ok=True)  # of an earlier attempt
    return True
