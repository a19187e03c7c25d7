"""Parquet files: the one import of the library that reads and writes them."""

from __future__ import annotations

from typing import Any

from .errors import UserError


def import_parquet() -> tuple[Any, Any]:
    """The modules `pyarrow` and `pyarrow.parquet`. Raises UserError where they aren't installed."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise UserError(
            "Parquet files need pyarrow, which is not installed: install atss-toolkit with the extra ray, or "
            "pip install pyarrow"
        ) from error
    return pyarrow, pyarrow.parquet
