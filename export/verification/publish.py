"""Publishing a file: it gets its name only after its verification."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from runtime.files import atomic_path

from .checks import Check, Verification

logger = logging.getLogger(__name__)


class _VerificationFailed(Exception):
    """Ends the writing of a file that must not get its name."""


def publish(out: Path, make: Callable[[], bytes], verify: Callable[[Path], Sequence[Check]]) -> Verification:
    """Write what `make` returns to `out` if all checks of `verify` pass. Returns the verification, and logs it.

    `verify` gets a temporary path with the content. A file that fails is kept at `failed_path(out)`, and a file that
    was at `out` before stays. Raises WriteError.
    """
    failed, verification = failed_path(out), Verification()
    try:
        with atomic_path(out) as temporary:  # opened first: an unwritable folder should not cost an export
            temporary.touch()
            temporary.write_bytes(make())
            logger.info("comparing it …")
            verification = Verification(tuple(verify(temporary)))
            logger.info(verification.table)
            if not verification.passed:
                os.replace(temporary, failed)
                raise _VerificationFailed
    except _VerificationFailed:
        logger.info(f"NOT written: the numbers differ too much. The file is kept for inspection as {failed}")
    else:
        failed.unlink(missing_ok=True)  # of an earlier attempt
    return verification


def failed_path(out: Path) -> Path:
    """Where a file that fails its verification is kept: NAME.failed.onnx."""
    return out.with_name(f"{out.stem}.failed.onnx")
