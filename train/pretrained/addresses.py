"""Which addresses a download may use: HTTPS, and plain HTTP on this machine alone."""

from __future__ import annotations

import ipaddress
from typing import Any
from urllib import request
from urllib.parse import urlsplit

from runtime.errors import UserError
from runtime.terminal import printable


class DownloadError(UserError):
    """A file that cannot be downloaded, or that is another one than published."""


def require_safe(url: str) -> None:
    """Raise DownloadError for an address that is neither HTTPS nor plain HTTP on this machine.

    An address with a user name and a password is refused too, because messages repeat the address.
    """
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise DownloadError(f"{printable(url)}: not an address ({error}); expected https://HOST/…") from error
    if "@" in parts.netloc:
        raise DownloadError(f"{parts.scheme}://{host}: a user name in an address is not supported; leave it out")
    if not host or not (parts.scheme == "https" or (parts.scheme == "http" and _is_this_machine(host))):
        raise DownloadError(f"{printable(url)}: expected https://HOST/… (plain http on localhost only)")


def _is_this_machine(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class SafeRedirects(request.HTTPRedirectHandler):
    """Follows redirects from HTTPS to HTTPS alone; plain HTTP on this machine may lead to either."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        """See urllib. Raises DownloadError for a redirect to an address that isn't safe."""
        try:
            require_safe(newurl)
            if req.type == "https" and urlsplit(newurl).scheme != "https":
                raise DownloadError(f"{printable(newurl)}: expected an address that begins with https://")
        except DownloadError as error:
            fp.close()
            raise DownloadError(f"{req.full_url}: the server redirects to {error}") from error
        return super().redirect_request(req, fp, code, msg, headers, newurl)
