"""The parser of every command's options."""

from __future__ import annotations

import argparse
import difflib
import re
from typing import NoReturn

from .terminal import printable

_OPTION = re.compile(r"--[a-z][a-z-]*")


class CommandParser(argparse.ArgumentParser):
    """A parser whose errors are one line, which names the nearest option where one is misspelt.

    Not tyro, which training uses: a machine that only runs or converts models doesn't install it.
    """

    def error(self, message: str) -> NoReturn:
        """End the command with one line and exit code 2."""
        known = {name for name in self._option_string_actions if name.startswith("--")}
        unknown = [option for option in _OPTION.findall(message) if option not in known]
        near = [name for option in unknown for name in difflib.get_close_matches(option, sorted(known), n=1)]
        meant = f"; did you mean {', '.join(near)}?" if near else ""
        self.exit(2, f"error: {printable(message)}{meant} ({self.prog} --help lists the options)\n")
