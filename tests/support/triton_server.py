"""A real Triton Inference Server for tests, in the environment that `scripts/triton_test.sh` makes."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from google.protobuf import text_format

from export.triton.config import import_messages

ENVIRONMENT = "ATSS_TRITON_ENV"
START_S = 120.0

# Runs the graph with ONNX Runtime alone and takes every name, type and shape from the configuration, as Triton's own
# backend does. Where the environment asks for it, no NMS is exact and the detections are wrong: the one in front has to
# run NMS on the candidates.
NETWORK_PY = """
import json
import os

import numpy as np
import onnxruntime
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        config = json.loads(args["model_config"])
        self.batches = config["max_batch_size"] > 0
        self.inputs = {one["name"]: one for one in config["input"]}
        self.outputs = {one["name"]: one for one in config["output"]}
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        folder = os.path.join(args["model_repository"], args["model_version"])
        path = os.path.join(folder, "model.onnx")
        self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def check(self, array, one):
        shape = array.shape[1:] if self.batches else array.shape
        dims = [int(size) for size in one["dims"]]
        assert array.dtype == pb_utils.triton_string_to_numpy(one["data_type"]), (one, array.dtype)
        assert len(dims) == len(shape), (one, array.shape)
        assert all(size in (-1, given) for size, given in zip(dims, shape)), (one, array.shape)

    def execute(self, requests):
        responses = []
        for request in requests:
            feed = {name: pb_utils.get_input_tensor_by_name(request, name).as_numpy() for name in self.inputs}
            for name, array in feed.items():
                self.check(array, self.inputs[name])
            found = dict(zip(self.outputs, self.session.run(list(self.outputs), feed)))
            if os.environ.get("ATSS_TEST_INEXACT"):
                found["nms_exact"][:] = 0
                found["detection_boxes"][:] = 7
            for name, array in found.items():
                self.check(array, self.outputs[name])
            wanted = request.requested_output_names()
            responses.append(pb_utils.InferenceResponse([pb_utils.Tensor(name, found[name]) for name in wanted]))
        return responses
"""


def serve_command() -> Path:
    """What starts the server. Skips the test where the environment isn't there."""
    folder = os.environ.get(ENVIRONMENT)
    if folder is None or not (Path(folder) / "serve").is_file():
        pytest.skip(f"no Triton server: {ENVIRONMENT} names the environment that scripts/triton_test.sh makes")
    return Path(folder) / "serve"


def network_in_python(repository: Path, name: str) -> None:
    """Have Python run the network of a written repository: the test's server has no ONNX Runtime backend."""
    path = repository / name / "config.pbtxt"
    config = text_format.Parse(path.read_text(encoding="utf-8"), import_messages().ModelConfig())
    assert config.backend == "onnxruntime"
    config.backend, config.default_model_filename = "python", "model.py"
    path.write_text(text_format.MessageToString(config), encoding="utf-8")
    (repository / name / "1" / "model.py").write_text(NETWORK_PY, encoding="utf-8")


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


class TritonServer:
    """A server process that answers. A context manager; leaving it ends the server."""

    def __init__(self, repository: Path, log: Path, *options: str, **environment: str) -> None:
        self.http, self.grpc, metrics = free_ports(3)
        self.log = log
        with log.open("w") as out:
            self.process = subprocess.Popen(
                [
                    serve_command(),
                    f"--model-repository={repository}",
                    *("--http-address=127.0.0.1", f"--http-port={self.http}"),
                    *("--grpc-address=127.0.0.1", f"--grpc-port={self.grpc}"),
                    *("--metrics-address=127.0.0.1", f"--metrics-port={metrics}"),
                    *options,
                ],
                stdout=out,
                stderr=subprocess.STDOUT,
                env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
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
        """Its exit code, once it has ended."""
        try:
            return self.process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise

    def _wait_for_start(self) -> None:
        ends = time.monotonic() + START_S
        while time.monotonic() < ends and self.process.poll() is None:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.http), timeout=1):
                return
            time.sleep(0.1)
        self.process.kill()
        self.process.wait()
        raise AssertionError(
            f"the server did not start:\n{self.log.read_text(encoding='utf-8', errors='replace')[-4000:]}"
        )

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
