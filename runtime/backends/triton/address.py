"""The address of a served model: `triton://host:port/model` over gRPC, `triton+http://host:port/model` over HTTP."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import Literal

from ..contract import BackendError

Protocol = Literal["grpc", "http"]
PORTS: dict[Protocol, int] = {"grpc": 8001, "http": 8000}  # Triton's own
LOCAL = ("localhost", "127.0.0.1", "[::1]")
_SCHEME = re.compile(r"triton(\+\w+)?:/")
_ADDRESS = re.compile(r"triton(?:\+(grpc|http))?://(\[[0-9a-fA-F:]+\]|[^/:@\[\]]+)(?::(\d{1,5}))?(?:/([^/]*))?/?")


@dataclass(frozen=True)
class TritonAddress:
    """A model in a Triton Inference Server."""

    host: str
    port: int
    model: str
    protocol: Protocol = "grpc"

    @property
    def server(self) -> str:
        """Host and port."""
        return f"{self.host}:{self.port}"

    @property
    def is_local(self) -> bool:
        """Whether the server runs on this machine, by its name."""
        return self.host in LOCAL

    def __str__(self) -> str:
        return f"triton{'+http' if self.protocol == 'http' else ''}://{self.server}/{self.model}"

    @classmethod
    def parse(cls, url: str, model: str | None = None) -> TritonAddress:
        """The address that a URL means; `model` is for a URL that names none. Raises BackendError."""
        found = _ADDRESS.fullmatch(url)
        name = model if found is None else found[4] or model
        is_port = found is None or found[3] is None or 1 <= int(found[3]) <= 65535
        if found is None or not is_port or not name or (model is not None and name != model):
            raise BackendError(
                f"{url}: not the address of a served model; expected triton://HOST:PORT/MODEL (gRPC) or "
                "triton+http://HOST:PORT/MODEL"
            )
        protocol: Protocol = "http" if found[1] == "http" else "grpc"
        return cls(found[2], int(found[3] or PORTS[protocol]), name, protocol)


def is_address(source: object) -> bool:
    """Whether a model's name is the address of a served model, not a path."""
    return isinstance(source, str | os.PathLike) and _SCHEME.match(os.fspath(source)) is not None
