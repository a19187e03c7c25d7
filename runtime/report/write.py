"""Writes reports: one HTML file, and a model card beside it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..coco.scored import Scoring
from ..errors import UserError
from ..files import atomic_write_together
from ..machine.conditions import command_line
from .card import model_card
from .collect import Wishes, collect
from .page import render


def require_libraries() -> None:
    """Raise UserError where a library of the extra `report` is missing."""
    try:
        import jinja2
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"a report needs {error.name}, which cannot be imported ({error}); pip install 'atss-toolkit[report]'"
        ) from error
    del jinja2


def write_report(path: Path, scoring: Scoring, wishes: Wishes, card: Path | None = None) -> None:
    """Write the report on an evaluation, and the first model's card where `card` names its file.

    Both files are written, or none. Raises UserError where a library or a training run cannot be read, WriteError.
    """
    require_libraries()
    content = collect(scoring, wishes)
    files: dict[Path, bytes | str] = {path: render(content)}
    if card is not None:
        files[card] = model_card(content)
    atomic_write_together(files)


def report_evaluation(path: Path, scoring: Scoring, arguments: Sequence[str] | None) -> None:
    """Write the report that `evaluate --report` asks for; `arguments` are the command's."""
    write_report(path, scoring, Wishes(command=command_line(arguments, "runtime.evaluate")))
    print(f"report → {path}")
