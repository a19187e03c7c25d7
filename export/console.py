"""What the export's commands share: a parser of options, and printing what the functions of `export.api` log."""

from __future__ import annotations

import argparse
import contextlib
import difflib
import logging
import re
import sys
from collections.abc import Iterator
from typing import NoReturn

_OPTION = re.compile(r"--[a-z][a-z-]*")


class CommandParser(argparse.ArgumentParser):
    """A parser that names the nearest option where one is misspelt.

    Not tyro, which training uses: a machine that only converts files or builds engines doesn't install it.
    """

    def error(self, message: str) -> NoReturn:
        """End the command with a usage message and exit code 2."""
        known = set(_OPTION.findall(self.format_help()))
        unknown = [option for option in _OPTION.findall(message) if option not in known]
        near = [name for option in unknown for name in difflib.get_close_matches(option, sorted(known), n=1)]
        super().error(f"{message}; did you mean {', '.join(near)}?" if near else message)


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
