"""Prints what the functions of `export.api` log, for the commands of the export."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Iterator


class _ConsoleHandler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        """Print at once, so that a long step shows before it ends. A closed pipe is the command's to handle."""
        print(self.format(record), file=sys.stdout if record.levelno < logging.WARNING else sys.stderr, flush=True)


@contextlib.contextmanager
def log_to_console() -> Iterator[None]:
    """Print the messages of the logger `export` while the block runs: progress on stdout, warnings on stderr.

    No other handler gets them.
    """
    logger, handler = logging.getLogger("export"), _ConsoleHandler()
    before = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.level, logger.propagate = before
