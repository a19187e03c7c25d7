"""Show what this machine can run, and why it cannot run the rest: `python -m runtime.doctor [--json]`.

The output fits one screen and belongs into bug reports. Every backend is started, which takes a few seconds. The exit
code is 0 whatever was found, even where nothing runs: problems stand in the text, in JSON under "advice". Exit code 2
means that the command line is wrong.
"""

from __future__ import annotations

if __name__ == "__main__":  # before the other imports, which take their time: Ctrl-C ends them in one line
    from runtime.interrupts import end_at_once

    end_at_once()

import json
from collections.abc import Sequence

from ..command_names import program
from ..command_parser import CommandParser
from ..errors import run_main
from .report import diagnose, to_jsonable
from .text import report_as_text


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = CommandParser(prog=program("runtime.doctor"), description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    options = parser.parse_args(arguments)
    report = diagnose()
    print(json.dumps(to_jsonable(report), indent=2) if options.json else report_as_text(report))
    return 0


if __name__ == "__main__":
    run_main(main)
