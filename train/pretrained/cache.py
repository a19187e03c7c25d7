"""Published checkpoints on this machine: in the cache, in a mirror's folder, or downloaded and checked."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from runtime.errors import UserError
from runtime.files import sha256_file
from runtime.home import home_folder

from .addresses import DownloadError, require_safe
from .catalogue import Published
from .download import Expected, download


def is_offline() -> bool:
    """Whether the variable ATSS_OFFLINE forbids downloads: it is set, and neither empty nor 0."""
    return os.environ.get("ATSS_OFFLINE", "") not in ("", "0")


def place_of(published: Published, source: str | None) -> Path:
    """Where a checkpoint's file lies or will lie: in the folder `source`, else in the cache.

    Raises UserError where the user has no folder for caches.
    """
    if source is not None and "://" not in source:
        return Path(source) / published.file
    try:
        return home_folder() / "checkpoints" / published.file
    except RuntimeError as error:
        raise UserError(f"no folder for downloads ({error}); name one with the variable ATSS_HOME") from error


def address_of(published: Published, source: str | None) -> str:
    """The address of a checkpoint's file: the publisher's, or that in the mirror `source`. Raises DownloadError."""
    if source is None:
        return published.url
    require_safe(source)
    if "?" in source or "#" in source:
        raise DownloadError(f"{source}: expected the address of a folder, without ? and #")
    return f"{source.rstrip('/')}/{published.file}"


def fetch(published: Published, source: str | None = None, offline: bool = False) -> Path:
    """The file of a published checkpoint, whose hash was checked in this call.

    `source` is a mirror: an address or a folder that has the file under its publisher's name. A file in the cache is
    used without any request; a damaged one is downloaded again. `offline` forbids requests. Raises UserError.
    """
    expected = Expected(published.sha256, published.bytes_range)
    path = place_of(published, source)
    is_folder = source is not None and "://" not in source
    if path.is_file():
        found = sha256_file(path)
        if expected.matches(found):
            return path
        told = f"{path} is damaged or another file: expected a SHA-256 that begins with {expected.sha256}, got {found}"
        if is_folder or offline:
            raise UserError(f"{told}; remove it, or leave out {'--from' if is_folder else '--offline'}")
        print(f"{told}; downloading it again", file=sys.stderr)
    elif is_folder:
        raise UserError(f"no file {path}: a folder for --from has the files under their publishers' names")
    elif offline:
        raise UserError(f"{published.file} is not in {path.parent}: run once without --offline and ATSS_OFFLINE")
    download(address_of(published, source), path, expected)
    if not expected.matches(sha256_file(path)):
        raise UserError(f"{path} changed after its download; run the command again")
    return path
