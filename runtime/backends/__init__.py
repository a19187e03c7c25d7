"""Backends run a deployed graph; each one's library is imported only when that backend is opened."""

from .choice import open_backend
from .contract import Backend, BackendError, BatchTooLarge

__all__ = ["Backend", "BackendError", "BatchTooLarge", "open_backend"]
