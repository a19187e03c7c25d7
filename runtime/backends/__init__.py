"""Backends run a deployed graph; each one's library is imported only when that backend is opened."""

from .contract import Backend, BackendError, BatchTooLarge, open_backend

__all__ = ["Backend", "BackendError", "BatchTooLarge", "open_backend"]
