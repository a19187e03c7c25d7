"""Downloads over real TLS, and through a proxy, from servers on this machine."""

from __future__ import annotations

import http.server
import re
import select
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import urlsplit

import pytest

from tests.support.tls import http_server, https_server, write_certificate
from train.pretrained.addresses import DownloadError
from train.pretrained.cache import fetch
from train.pretrained.catalogue import CATALOGUE
from train.pretrained.download import download

from .test_download import CONTENT, EXPECTED, PAUSES, Handler, left

PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "no_proxy", "all_proxy")


@pytest.fixture(autouse=True)
def _own_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """The proxies and certificates are those of the tests."""
    Handler.asked.clear()
    for name in (*PROXIES, "SSL_CERT_FILE", "SSL_CERT_DIR"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def certificate(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Of localhost; trusted."""
    path = write_certificate(tmp_path_factory.mktemp("tls") / "localhost.pem", "localhost", "127.0.0.1")
    monkeypatch.setenv("SSL_CERT_FILE", str(path))
    return path


@pytest.fixture
def secure(certificate: Path) -> Iterator[str]:
    with https_server(Handler, certificate) as port:
        yield f"https://localhost:{port}"


@pytest.mark.parametrize("way", ["plain", "redirect", "cut"])
def test_a_server_whose_certificate_is_trusted(way: str, secure: str, tmp_path: Path) -> None:
    download(f"{secure}/{way}/f", tmp_path / "f", EXPECTED, PAUSES)
    assert (tmp_path / "f").read_bytes() == CONTENT
    assert left(tmp_path) == ["f"]


def test_a_published_checkpoint_comes_from_such_a_mirror(
    secure: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ATSS_HOME", str(tmp_path))
    name = f"made-{EXPECTED.sha256}.pth"
    made = replace(CATALOGUE["tv_fcos_r50"], url=f"https://example.invalid/{name}", mebibytes=None)
    assert fetch(made, f"{secure}/plain/") == tmp_path / "checkpoints" / name
    assert (tmp_path / "checkpoints" / name).read_bytes() == CONTENT
    asked = len(Handler.asked)
    assert fetch(made, offline=True) == tmp_path / "checkpoints" / name
    assert len(Handler.asked) == asked


def refused(url: str, folder: Path) -> str:
    """What a refusal says; the file isn't there, and nothing was sent but the request that was refused."""
    with pytest.raises(DownloadError) as caught:
        download(url, folder / "f", EXPECTED, PAUSES)
    assert "\n" not in str(caught.value)
    assert sum(path.stat().st_size for path in folder.iterdir()) == 0
    return str(caught.value)


@pytest.mark.parametrize(
    ("names", "days", "trusted", "said"),
    [
        (("localhost",), 1, False, "self-signed certificate"),
        (("localhost",), -1, True, "certificate has expired"),
        (("localhost",), 10, True, "certificate is not yet valid"),
        (("example.org", "127.0.0.1"), 1, True, "Hostname mismatch, certificate is not valid for 'localhost'"),
    ],
)
def test_a_certificate_that_proves_nothing(
    names: tuple[str, ...], days: int, trusted: bool, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = write_certificate(tmp_path / "shown.pem", *names, days=days)
    other = write_certificate(tmp_path / "other.pem", "localhost")
    monkeypatch.setenv("SSL_CERT_FILE", str(shown if trusted else other))
    (tmp_path / "out").mkdir()
    with https_server(Handler, shown) as port:
        message = refused(f"https://localhost:{port}/plain/f", tmp_path / "out")
    assert f"the server's certificate can't be verified ({said}" in message.replace("self signed", "self-signed")
    assert "SSL_CERT_FILE" in message
    assert Handler.asked == [], "refused before the request was sent"


class Downgrading(http.server.BaseHTTPRequestHandler):
    """Redirects to the address that its path names."""

    def do_GET(self) -> None:
        self.send_response(302)
        self.send_header("Location", self.path[1:])
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""


def test_https_does_not_lead_to_http(certificate: Path, tmp_path: Path) -> None:
    """Not even to this machine, where an address that begins with http: is taken."""
    with https_server(Downgrading, certificate) as port, http_server(Handler) as plain:
        for target in (f"http://127.0.0.1:{plain}/plain/f", "http://example.invalid/f", "ftp://example.invalid/f"):
            message = refused(f"https://localhost:{port}/{target}", tmp_path)
            assert re.search(rf"the server redirects to {re.escape(target)}: expected .*https://", message)
        assert Handler.asked == []
        download(f"http://127.0.0.1:{plain}/plain/f", tmp_path / "f", EXPECTED, PAUSES)


def test_plain_http_is_no_https(certificate: Path, tmp_path: Path) -> None:
    with http_server(Handler) as port:
        assert "the connection failed (" in refused(f"https://localhost:{port}/plain/f", tmp_path)
    assert Handler.asked == []


class Proxy(http.server.BaseHTTPRequestHandler):
    """Leads to a server on this machine, whatever host is asked for, also one that no name server knows."""

    target: ClassVar[int] = 0  # its port
    refuses: ClassVar[bool] = False
    seen: ClassVar[list[tuple[str, str]]] = []

    def do_CONNECT(self) -> None:
        self.seen.append(("CONNECT", self.path))
        if self.refuses:
            self.send_error(407, "Proxy Authentication Required")
            return
        with socket.create_connection(("127.0.0.1", self.target)) as server:
            self.send_response(200)
            self.end_headers()
            ends = {self.connection: server, server: self.connection}
            while True:
                for one in select.select(list(ends), [], [])[0]:
                    data = one.recv(1 << 16)
                    if not data:
                        self.close_connection = True
                        return
                    ends[one].sendall(data)

    def do_GET(self) -> None:
        self.seen.append(("GET", self.path))
        self.send_error(502)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""


@pytest.fixture
def proxy() -> Iterator[str]:
    Proxy.seen.clear()
    Proxy.refuses = False
    with http_server(Proxy) as port:
        yield f"http://127.0.0.1:{port}"


@pytest.mark.parametrize("name", ["HTTPS_PROXY", "https_proxy"])
def test_the_proxy_for_https_sees_the_host_alone(
    name: str, proxy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate = write_certificate(tmp_path / "tls.pem", "checkpoints.invalid")
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    monkeypatch.setenv(name, proxy)
    with https_server(Handler, certificate) as port:
        Proxy.target = port
        for way in ("plain", "cut"):
            (tmp_path / "f").unlink(missing_ok=True)
            download(f"https://checkpoints.invalid/{way}/f", tmp_path / "f", EXPECTED, PAUSES)
            assert (tmp_path / "f").read_bytes() == CONTENT
    assert Proxy.seen == [("CONNECT", "checkpoints.invalid:443")] * 3


def test_the_proxy_is_not_asked_for_hosts_of_no_proxy(
    proxy: str, secure: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", proxy)
    monkeypatch.setenv("NO_PROXY", "example.org,localhost")
    download(f"{secure}/plain/f", tmp_path / "f", EXPECTED, PAUSES)
    assert Proxy.seen == []
    monkeypatch.setenv("NO_PROXY", "example.org")
    Proxy.target = urlsplit(secure).port or 0
    (tmp_path / "f").unlink()
    download(f"{secure}/plain/f", tmp_path / "f", EXPECTED, PAUSES)
    assert Proxy.seen == [("CONNECT", f"localhost:{Proxy.target}")]


def test_plain_http_stays_on_this_machine(proxy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever proxy is named for it: nothing would show that the file is the publisher's."""
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, proxy)
    with http_server(Handler) as port:
        download(f"http://localhost:{port}/plain/f", tmp_path / "f", EXPECTED, PAUSES)
    assert (len(Proxy.seen), len(Handler.asked)) == (0, 1)


def test_a_proxy_that_refuses_is_one_line(proxy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = proxy.replace("http://", "http://me:secret@")
    monkeypatch.setenv("HTTPS_PROXY", secret)
    Proxy.refuses = True
    message = refused("https://checkpoints.invalid/plain/f", tmp_path)
    assert "407 Proxy Authentication Required" in message
    assert "secret" not in message
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:1")
    assert "the connection failed (" in refused("https://checkpoints.invalid/plain/f", tmp_path)
