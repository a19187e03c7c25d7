"""Downloads from a server on this machine that fails in all the ways that servers and networks do."""

from __future__ import annotations

import hashlib
import http.server
import os
import re
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

from runtime.files import WriteError
from train.pretrained.addresses import DownloadError, require_safe
from train.pretrained.cache import fetch
from train.pretrained.catalogue import CATALOGUE
from train.pretrained.download import Expected, download

CONTENT = bytes(range(256)) * 4096  # 1 MiB
OTHER = CONTENT[::-1]
EXPECTED = Expected(hashlib.sha256(CONTENT).hexdigest()[:8], (len(CONTENT), len(CONTENT)))
HALF = len(CONTENT) // 2
PAUSES = (0.01, 0.01)


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers by the path's first part; counts what was asked."""

    asked: ClassVar[list[tuple[str, str | None]]] = []

    def do_GET(self) -> None:
        way, wanted = self.path.split("/")[1], self.headers["Range"]
        type(self).asked.append((way, wanted))
        tries = [one for one, _ in self.asked].count(way)
        start = int(wanted.split("=")[1].rstrip("-")) if wanted and way != "rangeless" else 0
        content, status = CONTENT, 206 if start else 200
        headers = {"Content-Type": "application/octet-stream"}
        if way == "redirect":
            status, content, headers["Location"] = 302, b"", "/plain/f"
        elif way == "tohttp":
            status, content, headers["Location"] = 302, b"", "http://example.invalid/f"
        elif way == "endless":
            status, content, headers["Location"] = 302, b"", "/endless/f"
        elif way == "missing":
            status = 404
        elif way == "busy" and tries == 1:
            status = 503
        elif way == "broken":
            status = 500
        elif way == "page":
            status = 200
            content, headers["Content-Type"] = b"<html>log in</html>", "text/html; charset=utf-8"
        elif way == "wrong":
            content = OTHER
        elif way == "longer":
            content = CONTENT + b"x"
        elif way == "coded":
            headers["Content-Encoding"] = "gzip"
        elif way == "beyond" and start:
            status = 416
        elif way == "lies" and start:
            headers["Content-Range"] = f"bytes 0-{len(content) - 1}/{len(content)}"
        if status == 206 and "Content-Range" not in headers:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        body = content[start:] if status == 206 else content
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if way not in ("unknown", "unknowncut"):
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if way in ("cut", "rangeless", "unknowncut") and tries == 1:
            body = body[:HALF]
        if way == "slow" and tries == 1:
            self.wfile.write(body[:HALF])
            self.wfile.flush()
            time.sleep(20)
        try:
            self.wfile.write(body)
        except OSError:
            self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""


@pytest.fixture
def server() -> Iterator[str]:
    Handler.asked.clear()
    made = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    made.daemon_threads, made.block_on_close = True, False
    thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{made.server_port}"
    made.shutdown()
    made.server_close()
    thread.join()


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("way", ["plain", "unknown", "redirect", "busy", "cut", "rangeless", "unknowncut"])
def test_the_file_arrives_whole(way: str, server: str, tmp_path: Path) -> None:
    download(f"{server}/{way}/f", tmp_path / "new" / "f", EXPECTED, PAUSES)
    assert (tmp_path / "new" / "f").read_bytes() == CONTENT
    assert left(tmp_path / "new") == ["f"]
    ranges = [wanted for one, wanted in Handler.asked if one == way]
    assert ranges == ([None, f"bytes={HALF}-"] if way in ("cut", "rangeless", "unknowncut") else [None] * len(ranges))


@pytest.mark.parametrize("way", ["plain", "rangeless", "beyond"])
def test_a_part_is_continued_and_a_part_of_another_file_costs_one_more_download(
    way: str, server: str, tmp_path: Path
) -> None:
    for begun in (CONTENT[:HALF], OTHER[:1000], CONTENT, CONTENT + b"more"):
        (tmp_path / "f.part").write_bytes(begun)
        (tmp_path / "f").unlink(missing_ok=True)
        Handler.asked[:] = [("rangeless", None)]  # its first answer is cut
        download(f"{server}/{way}/f", tmp_path / "f", EXPECTED, PAUSES)
        assert (tmp_path / "f").read_bytes() == CONTENT
        assert left(tmp_path) == ["f"]
        if begun == CONTENT:  # killed before the rename: nothing is asked
            assert len(Handler.asked) == 1


@pytest.mark.parametrize(
    ("way", "said", "requests"),
    [
        ("missing", "HTTP 404", 1),
        ("broken", "HTTP 500 Internal Server Error, in 3 tries", 3),
        ("page", "answers with a page", 1),
        ("wrong", f"begins with {EXPECTED.sha256}, got {hashlib.sha256(OTHER).hexdigest()}", 1),
        ("longer", f"has {len(CONTENT) + 1} bytes, expected {len(CONTENT)}", 1),
        ("coded", "in the coding 'gzip'", 1),
        ("tohttp", "redirects to http://example.invalid/f: expected https://", 1),
        ("endless", "redirects too often", None),
    ],
)
def test_what_is_refused(way: str, said: str, requests: int | None, server: str, tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match=re.escape(said)) as caught:
        download(f"{server}/{way}/f", tmp_path / "f", EXPECTED, PAUSES)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "f").exists()
    assert requests in (None, len(Handler.asked))
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) == 0


@pytest.mark.parametrize("way", ["plain", "wrong", "longer"])
def test_no_open_file_is_renamed_or_removed(
    way: str, server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Windows has it, where both fail."""
    rename, remove, done = os.replace, Path.unlink, list[str]()

    def require_closed(path: Path) -> None:
        done.append(path.name)
        open_files = [os.path.realpath(link) for link in Path("/proc/self/fd").iterdir()]
        if str(path.resolve()) in open_files:
            raise PermissionError(13, "used by another process", str(path))

    def replace(source: Path, target: Path) -> None:
        require_closed(source)
        rename(source, target)

    def unlink(self: Path, missing_ok: bool = False) -> None:
        require_closed(self)
        remove(self, missing_ok)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", replace)
        patch.setattr(Path, "unlink", unlink)
        with nullcontext() if way == "plain" else pytest.raises(DownloadError):
            download(f"{server}/{way}/f", tmp_path / "f", EXPECTED, PAUSES)
    assert "f.lock" in done
    assert (tmp_path / "f").exists() == (way == "plain")
    assert (tmp_path / "f.lock").stat().st_size == 0


def test_a_file_of_another_hash_stays_until_the_right_one_replaces_it(server: str, tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(OTHER)
    with pytest.raises(DownloadError):
        download(f"{server}/missing/f", tmp_path / "f", EXPECTED, PAUSES)
    assert (tmp_path / "f").read_bytes() == OTHER
    download(f"{server}/plain/f", tmp_path / "f", EXPECTED, PAUSES)
    assert (tmp_path / "f").read_bytes() == CONTENT
    assert left(tmp_path) == ["f"]
    Handler.asked.clear()
    download(f"{server}/plain/f", tmp_path / "f", EXPECTED, PAUSES)
    assert Handler.asked == [], "another process has finished it"


def test_a_damaged_file_of_the_cache_is_downloaded_again_from_a_mirror(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ATSS_HOME", str(tmp_path))
    file = f"x-{EXPECTED.sha256}.pth"
    published = replace(CATALOGUE["tv_fcos_r50"], url=f"https://example.invalid/{file}", mebibytes=None)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / file).write_bytes(OTHER)
    assert fetch(published, f"{server}/plain/").read_bytes() == CONTENT
    assert f"{file} is damaged or another file" in capsys.readouterr().err
    assert fetch(published, f"{server}/plain/") == tmp_path / "checkpoints" / file
    assert len(Handler.asked) == 1
    assert left(tmp_path / "checkpoints") == [file]


@pytest.mark.parametrize("name", ["HTTP_PROXY", "http_proxy"])
def test_plain_http_on_this_machine_does_not_leave_it_through_a_proxy(
    name: str, server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, "http://127.0.0.1:1")
    for variable in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(variable, raising=False)
    download(f"{server}/plain/f", tmp_path / "f", EXPECTED, ())
    assert (tmp_path / "f").read_bytes() == CONTENT


def test_a_range_that_was_not_asked_for_is_refused(server: str, tmp_path: Path) -> None:
    (tmp_path / "f.part").write_bytes(CONTENT[:HALF])
    with pytest.raises(DownloadError, match=f"asked for bytes from {HALF} on"):
        download(f"{server}/lies/f", tmp_path / "f", EXPECTED, PAUSES)


@pytest.mark.parametrize("way", ["page", "coded"])
def test_an_answer_that_is_refused_leaves_the_part(way: str, server: str, tmp_path: Path) -> None:
    """A network that asks for a login answers any request with a page: what was downloaded before stays."""
    (tmp_path / "f.part").write_bytes(CONTENT[:HALF])
    with pytest.raises(DownloadError):
        download(f"{server}/{way}/f", tmp_path / "f", EXPECTED, PAUSES)
    assert (tmp_path / "f.part").read_bytes() == CONTENT[:HALF]


def test_a_server_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match=r"the connection failed \(.*\), in 3 tries"):
        download("http://127.0.0.1:1/f", tmp_path / "f", EXPECTED, PAUSES)


@pytest.mark.parametrize(
    "url", ["http://example.org/f", "ftp://localhost/f", "file:///etc/passwd", "https://", "https://[::1/", "f", "https://u:p@h/f"]
)  # fmt: skip
def test_addresses_that_are_not_safe(url: str) -> None:
    with pytest.raises(DownloadError) as caught:
        require_safe(url)
    assert "u:p" not in str(caught.value)


def test_a_full_disk_is_one_error_and_the_part_is_continued(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (HALF, before[1]))
    try:
        with pytest.raises(WriteError, match=r"cannot write .*f\.part"):
            download(f"{server}/plain/f", tmp_path / "f", EXPECTED, PAUSES)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert (tmp_path / "f.part").read_bytes() == CONTENT[:HALF]
    with monkeypatch.context() as patch:
        patch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=10))
        with pytest.raises(WriteError, match=r"0\.5 MiB are missing and 0\.0 MiB are free; .*ATSS_HOME"):
            download(f"{server}/plain/f", tmp_path / "f", EXPECTED, PAUSES)
    download(f"{server}/plain/f", tmp_path / "f", EXPECTED, PAUSES)
    assert Handler.asked[-1] == ("plain", f"bytes={HALF}-")
    assert left(tmp_path) == ["f"]


def started(url: str, target: Path) -> subprocess.Popen[str]:
    code = (
        "import sys\nfrom pathlib import Path\nfrom train.pretrained.download import Expected, download\n"
        f"download(sys.argv[1], Path(sys.argv[2]), Expected({EXPECTED.sha256!r}))"
    )
    return subprocess.Popen([sys.executable, "-c", code, url, str(target)], stderr=subprocess.PIPE, text=True)


def wait_for(path: Path, size: int) -> None:
    for _ in range(1200):
        if path.exists() and path.stat().st_size >= size:
            return
        time.sleep(0.05)
    pytest.fail(f"{path} has not grown to {size} bytes")


def test_a_killed_download_is_continued_and_a_second_process_waits(server: str, tmp_path: Path) -> None:
    first = started(f"{server}/slow/f", tmp_path / "f")
    wait_for(tmp_path / "f.part", HALF)
    second = started(f"{server}/slow/f", tmp_path / "f")
    assert second.stderr is not None
    assert second.stderr.readline() == "waiting for another process that downloads f\n"
    first.send_signal(signal.SIGKILL)
    first.communicate(timeout=60)
    assert second.communicate(timeout=60)[1] == ""
    assert second.returncode == 0
    assert (tmp_path / "f").read_bytes() == CONTENT
    assert Handler.asked == [("slow", None), ("slow", f"bytes={HALF}-")]
    assert left(tmp_path) == ["f"]
