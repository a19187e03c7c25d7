"""What runs a deployed graph. A backend's library is imported when that backend is opened."""

from .contract import Backend, BackendError, BatchTooLarge, open_backend

__all__ = ["Backend", "BackendError", "BatchTooLarge", "open_backend"]
