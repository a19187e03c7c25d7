"""Addresses at which something else than Triton answers, or Triton in another protocol."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from runtime.backends import BackendError
from runtime.triton import TritonDetector

pytest.importorskip("tritonclient.http", reason="pip install 'atss-toolkit[triton]'")


def test_the_port_of_the_other_protocol() -> None:
    from ...support.triton_fake import FakeTriton

    server = FakeTriton()
    try:
        with pytest.raises(BackendError, match="was not reached while connecting") as raised:
            TritonDetector(f"triton+http://localhost:{server.port}/red")
    finally:
        server.stop()
    assert one_line(raised.value).endswith("is that its port for HTTP?")


@pytest.mark.parametrize(
    ("status", "told"), [(404, r"while connecting \(it is not live\)"), (200, "while asking .*Parse error")]
)
def test_a_server_that_is_not_triton(status: int, told: str) -> None:
    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(b"<html></html>")

        do_POST = do_GET

    with ThreadingHTTPServer(("127.0.0.1", 0), Page) as other:
        threading.Thread(target=other.serve_forever).start()
        try:
            with pytest.raises(BackendError, match=told) as raised:
                TritonDetector(f"triton+http://localhost:{other.server_port}/red")
        finally:
            other.shutdown()
    assert one_line(raised.value).endswith("is that its port for HTTP?")


def one_line(error: BaseException) -> str:
    assert len(str(error).splitlines()) == 1
    return str(error)
