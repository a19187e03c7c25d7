"""Starts and ends a Triton Inference Server for measurements and tests. `scripts/triton_test.sh` installs one."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

ENVIRONMENT = "ATSS_TRITON_ENV"  # names the folder that the script installed into
START_S = 120.0
END_S = 60.0


def serve_command() -> Path | None:
    """What starts the server, with the options of tritonserver; None where it isn't installed."""
    path = Path(os.environ.get(ENVIRONMENT, ".triton")) / "serve"
    return path if path.is_file() else None


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


class TritonServer:
    """A server process of a repository that answers; its output goes to `log`. A context manager, which ends it.

    `options` are tritonserver's. Raises RuntimeError with the end of the log if the server doesn't start.
    """

    def __init__(self, repository: Path, log: Path, *options: str, **environment: str) -> None:
        command = serve_command()
        if command is None:
            raise RuntimeError(f"no Triton server: run scripts/triton_test.sh, or name its folder with {ENVIRONMENT}")
        self.http, self.grpc, metrics = free_ports(3)
        self.log = log
        self._memory = f"atss_triton_{self.http}"
        with log.open("w") as out:
            self.process = subprocess.Popen(
                [
                    command,
                    f"--model-repository={repository}",
                    *("--http-address=127.0.0.1", f"--http-port={self.http}"),
                    *("--grpc-address=127.0.0.1", f"--grpc-port={self.grpc}"),
                    *("--metrics-address=127.0.0.1", f"--metrics-port={metrics}"),
                    f"--backend-config=python,shm-region-prefix-name={self._memory}",
                    *options,
                ],
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**os.environ, **environment},
            )
        self._wait_for_start()

    def url(self, model: str, protocol: str = "grpc") -> str:
        """The address of a model in this server."""
        if protocol == "http":
            return f"triton+http://localhost:{self.http}/{model}"
        return f"triton://localhost:{self.grpc}/{model}"

    def terminate(self) -> None:
        """Ask the server to end, as Kubernetes or Docker does."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)

    def wait(self) -> int:
        """The server's exit code, once it has ended."""
        try:
            return self.process.wait(timeout=END_S)
        finally:
            self._clean_up()

    def _clean_up(self) -> None:
        """End what a server that was killed, or doesn't end, leaves: its Python processes and their memory."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        for path in Path("/dev/shm").glob(f"{self._memory}*"):
            path.unlink(missing_ok=True)

    def _wait_for_start(self) -> None:
        """Triton listens once it has tried to load every model."""
        ends = time.monotonic() + START_S
        while time.monotonic() < ends and self.process.poll() is None:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.http), timeout=1):
                return
            time.sleep(0.1)
        self._clean_up()
        told = self.log.read_text(encoding="utf-8", errors="replace")
        raise RuntimeError(f"the server did not start:\n{told[-4000:]}")

    def __enter__(self) -> TritonServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.terminate()
        self.wait()


@contextlib.contextmanager
def served(repository: Path, folder: Path, *options: str, **environment: str) -> Iterator[TritonServer]:
    """A server of this repository, with its log in `folder`."""
    with TritonServer(repository, folder / "triton.log", *options, **environment) as server:
        yield server
