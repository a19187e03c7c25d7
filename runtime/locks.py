"""Locks on open files. The system releases them when their process ends, however it ends."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path

_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EBADF, errno.EINVAL)
_held: set[int] = set()  # descriptors whose lock ends with this process


def try_lock(descriptor: int) -> bool | None:
    """Lock an open file or folder until `let_go`, without waiting.

    False: another process, or another opening in this one, holds the lock. None: the file system has no locks, as some
    network file systems; NFS locks only what is open for writing.
    """
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES, errno.EDEADLK):
            return False
        if error.errno in _NO_LOCKS:
            return None
        raise
    _held.add(descriptor)
    return True


def is_at(descriptor: int, path: Path, *, follow_symlinks: bool = True) -> bool:
    """Whether an open file is still the one of that name: another process may have removed it before it was locked."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path, follow_symlinks=follow_symlinks))
    except OSError:
        return False


def let_go(descriptor: int) -> None:
    """Close a descriptor, and with it release the lock that `try_lock` took."""
    _held.discard(descriptor)
    os.close(descriptor)


def _forget() -> None:
    """Close what a forked child has inherited: it may outlive its parent by seconds, and would hold the locks on."""
    while _held:
        try:
            os.close(_held.pop())
        except OSError:
            continue


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
