"""Download of a file whose hash is known: over HTTPS, resumed where it broke off, published when it is whole.

A file grows as NAME.part beside its target, written by the process that holds the lock of NAME.lock. The hash says
whether the part and the rest belong together, so no date or ETag is kept: where a resumed file has a wrong hash, it is
downloaded once more from its beginning. urllib does the requests, redirects and proxies (HTTPS_PROXY, NO_PROXY), and
OpenSSL the certificates (SSL_CERT_FILE).
"""

from __future__ import annotations

import hashlib
import http
import http.client
import io
import os
import shutil
import socket
import ssl
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn
from urllib import error, request

from tqdm import tqdm

from runtime.files import WriteError, sha256_file, write_all, write_error
from runtime.locks import is_at, let_go, try_lock
from runtime.terminal import printable

from .addresses import DownloadError, SafeRedirects, require_safe

PAUSES_S = (1.0, 2.0, 4.0, 8.0)  # before each further try; a try that brought bytes starts anew
TIMEOUT_S = 30.0  # for connecting, and for each read
MOST_BYTES = 2 << 30  # of a file whose size its publisher doesn't state
_BLOCK = 1 << 18
_TEMPORARY = frozenset({408, 425, 429, 500, 502, 503, 504})  # HTTP statuses after which the same request may succeed
_BEYOND_THE_END = 416


@dataclass(frozen=True)
class Expected:
    """What a file must be: the first digits of its SHA-256, and the least and the most bytes where they are known."""

    sha256: str
    bytes_range: tuple[int, int] | None = None

    def matches(self, digest: str) -> bool:
        """Whether a whole SHA-256 begins with the expected digits."""
        return digest.startswith(self.sha256)

    @property
    def least_bytes(self) -> int:
        """The least bytes to accept."""
        return 1 if self.bytes_range is None else self.bytes_range[0]

    @property
    def most_bytes(self) -> int:
        """The most bytes to accept."""
        return MOST_BYTES if self.bytes_range is None else self.bytes_range[1]


class _Broken(Exception):
    """A try that failed in a way that may pass."""


def download(url: str, target: Path, expected: Expected, pauses_s: Sequence[float] = PAUSES_S) -> None:
    """Download `url` to `target`, or wait for another process that does. A file of another hash there is replaced.

    A part of an earlier, interrupted run is continued. Raises DownloadError for an address that isn't HTTPS, a server's
    refusal, a connection that stays broken, and a file of another size or hash, which is removed; WriteError for a full
    disk. What is written until an interruption stays for the next run.
    """
    require_safe(url)
    part = target.with_name(f"{target.name}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as failed:
        raise write_error(target, failed) from failed
    with _alone(target.with_name(f"{target.name}.lock"), target.name):
        if target.is_file() and expected.matches(sha256_file(target)):  # by the process that was waited for
            part.unlink(missing_ok=True)
            return
        digest = _complete(url, part, expected, pauses_s)
        if not expected.matches(digest):
            part.unlink(missing_ok=True)
            raise DownloadError(
                f"{url}: the file is another one than published: expected a SHA-256 that begins with "
                f"{expected.sha256}, got {digest}; the download is removed. Try again, or --from another place. If the "
                "publisher has changed the file, download it yourself, check it, and give the file"
            )
        try:
            os.replace(part, target)
        except OSError as failed:
            raise write_error(target, failed) from failed


def _complete(url: str, part: Path, expected: Expected, pauses_s: Sequence[float]) -> str:
    """Fetch what the part lacks, and all where it belongs to another file. Returns the SHA-256; the part is closed.

    Windows renames and removes no open file.
    """
    try:
        descriptor = os.open(part, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o666)
    except OSError as failed:
        raise write_error(part, failed) from failed
    with open(descriptor, "r+b", buffering=0) as file:
        transfer = _Transfer(url, part, file, expected)
        if transfer.position >= expected.most_bytes and not transfer.is_whole():
            transfer.begin_again()
        resumed = transfer.position > 0
        digest = transfer.run(pauses_s)
        if resumed and not expected.matches(digest):
            transfer.begin_again()
            digest = transfer.run(pauses_s)
        try:
            os.fsync(descriptor)
        except OSError as failed:
            raise write_error(part, failed) from failed
    return digest


class _Transfer:
    """A file that grows: the part on disk, the hash of what it holds, and the requests for the rest."""

    def __init__(self, url: str, part: Path, file: io.FileIO, expected: Expected) -> None:
        self.url, self._part, self._file, self._expected = url, part, file, expected
        self._digest = hashlib.sha256()
        self.position = 0
        while block := file.read(_BLOCK):
            self._digest.update(block)
            self.position += len(block)

    def begin_again(self) -> None:
        """Empty the part."""
        self._file.truncate(0)
        self._file.seek(0)
        self._digest, self.position = hashlib.sha256(), 0

    def run(self, pauses_s: Sequence[float]) -> str:
        """Fetch what is missing, in as many tries as there are pauses and one more. Returns the SHA-256."""
        failures = 0
        while not self.is_whole():
            before = self.position
            try:
                self._fetch()
                break
            except _Broken as broken:
                failures = 1 if self.position > before else failures + 1
                if failures > len(pauses_s):
                    raise DownloadError(
                        f"{self.url}: {broken}, in {failures} tries; {_mebibytes(self.position)} are kept: run the "
                        "command again to continue, or use --from another place"
                    ) from broken
                time.sleep(pauses_s[failures - 1])
        return self._digest.hexdigest()

    def is_whole(self) -> bool:
        """Whether a run that was killed before the rename left all bytes."""
        return self.position > 0 and self._expected.matches(self._digest.hexdigest())

    def _fetch(self) -> None:
        """One request, and all that it brings. Raises _Broken where another may bring more."""
        try:
            with _open(self.url, self.position) as response:
                self._receive(response)
        except error.HTTPError as failed:
            failed.close()
            if failed.code == _BEYOND_THE_END and self.position:
                self.begin_again()
                raise _Broken("the server has a shorter file than the part") from failed
            if failed.code in _TEMPORARY:
                raise _Broken(_status(failed)) from failed
            raise DownloadError(
                f"{self.url}: {_status(failed)}; the file may have moved: use --from another place, or download it "
                "yourself and give the file"
            ) from failed
        except error.URLError as failed:
            reason = failed.reason
            _refuse(self.url, reason if isinstance(reason, Exception) else failed)
        except (OSError, http.client.HTTPException, UnicodeError) as failed:
            _refuse(self.url, failed)

    def _receive(self, response: Any) -> None:
        if response.headers.get_content_type() == "text/html":
            raise DownloadError(
                f"{self.url}: the server answers with a page rather than a file; if your network asks for a login, "
                "open a browser first"
            )
        coding = response.headers.get("Content-Encoding", "identity")
        if coding != "identity":
            raise DownloadError(f"{self.url}: the server sends the file in the coding {coding!r}, expected none")
        if self.position and response.status != http.HTTPStatus.PARTIAL_CONTENT:
            self.begin_again()  # the server sends the whole file
        left = response.length  # None: the server doesn't say
        if left is not None:
            self._check_length(self.position + left)
        total = None if left is None else self.position + left
        with tqdm(
            total=total,
            initial=self.position,
            desc=self._part.stem,
            unit="B",
            unit_scale=True,
            disable=not sys.stderr.isatty(),
            leave=False,
        ) as bar:
            while block := response.read(_BLOCK):
                if self.position + len(block) > self._expected.most_bytes:
                    self._check_length(self.position + len(block))
                try:
                    write_all(self._file, block)
                except OSError as failed:
                    raise write_error(self._part, failed) from failed
                self._digest.update(block)
                self.position += len(block)
                bar.update(len(block))
        least = self._expected.least_bytes if total is None else total
        if self.position < least:
            raise _Broken(f"the connection was cut at {self.position} of {least} bytes")

    def _check_length(self, total: int) -> None:
        """Refuse a file of another size than published, and one for which the disk has no room."""
        least, most = self._expected.least_bytes, self._expected.most_bytes
        if not least <= total <= most:
            self.begin_again()
            raise DownloadError(
                f"{self.url}: the server's file has {total} bytes, expected {least} to {most}; try --from another place"
            )
        free = shutil.disk_usage(self._part.parent).free
        if total - self.position > free:
            raise WriteError(
                f"cannot write {self._part}: {_mebibytes(total - self.position)} are missing and "
                f"{_mebibytes(free)} are free; free some space, or name another folder with ATSS_HOME"
            )


def _open(url: str, position: int) -> Any:
    """The response to a request for a file from `position` on. Raises what urllib raises, and DownloadError."""
    headers = {"User-Agent": "atss-toolkit", "Accept-Encoding": "identity"}
    if position:
        headers["Range"] = f"bytes={position}-"
    # Plain HTTP stays on this machine, so it goes through no proxy.
    proxies = {scheme: proxy for scheme, proxy in request.getproxies().items() if scheme == "https"}
    opener = request.OpenerDirector()  # not build_opener, which adds file:, ftp: and data:
    for handler in (
        request.ProxyHandler(proxies),
        request.HTTPHandler(),
        request.HTTPSHandler(context=ssl.create_default_context()),
        SafeRedirects(),
        request.HTTPDefaultErrorHandler(),
        request.HTTPErrorProcessor(),
        request.UnknownHandler(),
    ):
        opener.add_handler(handler)
    response = opener.open(request.Request(url, headers=headers), timeout=TIMEOUT_S)
    if response.status == http.HTTPStatus.PARTIAL_CONTENT:
        begins = response.headers.get("Content-Range", "").partition("-")[0]
        if begins != f"bytes {position}":
            response.close()
            raise DownloadError(f"{url}: asked for bytes from {position} on, the server sends {printable(begins)!r}")
    return response


def _status(failed: error.HTTPError) -> str:
    if 300 <= failed.code < 400:
        return f"the server redirects too often, or to nowhere (HTTP {failed.code})"
    return f"the server answers HTTP {failed.code} {printable(failed.reason)}"


def _refuse(url: str, failed: Exception) -> NoReturn:
    """Raise _Broken for an error of the network that may pass, else DownloadError."""
    reason = printable(getattr(failed, "strerror", None) or str(failed) or type(failed).__name__)
    if isinstance(failed, ssl.SSLCertVerificationError):
        raise DownloadError(
            f"{url}: the server's certificate can't be verified ({printable(failed.verify_message)}); check the clock, "
            "and name your network's certificates with SSL_CERT_FILE"
        ) from failed
    if isinstance(failed, socket.gaierror):
        raise DownloadError(
            f"{url}: no address for this host ({reason}); check the network, HTTPS_PROXY, or use --from with a folder"
        ) from failed
    if isinstance(failed, http.client.InvalidURL | UnicodeError):
        raise DownloadError(f"{url}: not an address ({reason})") from failed
    raise _Broken(f"the connection failed ({reason})") from failed


@contextmanager
def _alone(lock: Path, name: str) -> Iterator[None]:
    """Hold the lock of a file that is made for it; waits while another process holds it. Raises WriteError."""
    is_told = False
    while True:
        try:
            descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as failed:
            raise write_error(lock, failed) from failed
        if try_lock(descriptor) is not False and is_at(descriptor, lock):
            break
        let_go(descriptor)
        if not is_told:
            print(f"waiting for another process that downloads {name}", file=sys.stderr)
            is_told = True
        time.sleep(0.1)
    try:
        yield
    finally:
        with suppress(OSError):  # Windows removes no open file
            lock.unlink()
        let_go(descriptor)


def _mebibytes(count: int) -> str:
    return f"{count / (1 << 20):.1f} MiB"
