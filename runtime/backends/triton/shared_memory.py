"""Regions of system shared memory through which images reach a server on this machine without being copied twice."""

from __future__ import annotations

import os
import uuid
from pathlib import Path
from typing import Any

import numpy as np

_STEP = 1 << 20  # bytes; regions grow by whole steps
_FOLDER = Path("/dev/shm")  # where Linux shows them


class MemoryFullError(Exception):
    """There is no room for a region; a container has 64 MB by default."""


def make_region() -> Region:
    """An empty region. Raises ImportError where the platform has none."""
    from tritonclient.utils import shared_memory

    return Region(shared_memory)


class Region:
    """Memory for one image at a time, which the server reads too. It grows to the largest image."""

    def __init__(self, library: Any) -> None:
        self._library = library
        self._handle: Any = None
        self._name, self._size = "", 0

    def write(self, array: np.ndarray, client: Any) -> None:
        """Copy an array into the region, which is first made larger and registered with the server if it must be.

        Raises MemoryFullError.
        """
        if array.nbytes > self._size:
            if self._handle is not None:
                self.unregister(client)
                self.free()
            name, size = f"atss_{uuid.uuid4().hex[:16]}", -(-array.nbytes // _STEP) * _STEP
            self._handle = self._library.create_shared_memory_region(name, f"/{name}", size)
            try:
                _reserve(name, size)
                client.register_system_shared_memory(name, f"/{name}", size)
            except BaseException:
                self.free()
                raise
            self._name, self._size = name, size
        self._library.set_shared_memory_region(self._handle, [array])

    def give(self, given: Any, size: int) -> None:
        """Make `size` bytes of the region the data of a request's input."""
        given.set_shared_memory(self._name, size)

    def unregister(self, client: Any) -> None:
        """Have the server forget the region."""
        if self._name:
            client.unregister_system_shared_memory(self._name)

    def free(self) -> None:
        """Give the memory back."""
        if self._handle is not None:
            self._library.destroy_shared_memory_region(self._handle)
        self._handle, self._name, self._size = None, "", 0


def _reserve(name: str, size: int) -> None:
    """Have the system set the memory aside: otherwise the first write into memory that is full ends the process."""
    try:
        with (_FOLDER / name).open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, size)
    except OSError as error:
        raise MemoryFullError(f"{size} bytes of shared memory: {error.strerror or error}") from error
