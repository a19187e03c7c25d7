"""A gRPC server in this process that speaks Triton's protocol and serves the finder of red rectangles."""

from __future__ import annotations

import json
import mmap
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from google.protobuf import json_format
from tritonclient.grpc import model_config_pb2, service_pb2, service_pb2_grpc

from runtime.backends.triton import contract
from runtime.detections import Detections
from runtime.detector import Detector
from runtime.errors import UserError
from runtime.images.preprocess import load
from runtime.manifest import Manifest, to_json

from .fakes import MANIFEST, RedBackend


def front_config(name: str = "red", manifest: Manifest = MANIFEST) -> Any:
    """The configuration of a model in front, written out by hand."""
    text = {
        "name": name,
        "backend": "python",
        "max_batch_size": 16,
        "input": [
            {"name": "encoded", "data_type": "TYPE_STRING", "dims": [1], "optional": True},
            {"name": "pixels", "data_type": "TYPE_UINT8", "dims": [-1, -1, 3], "optional": True},
        ],
        "output": [
            {"name": "boxes", "data_type": "TYPE_FP32", "dims": [-1, 4]},
            {"name": "scores", "data_type": "TYPE_FP32", "dims": [-1]},
            {"name": "classes", "data_type": "TYPE_INT32", "dims": [-1]},
            {"name": "labels", "data_type": "TYPE_STRING", "dims": [-1]},
        ],
        "parameters": {"manifest": {"string_value": to_json(manifest)}},
    }
    return json_format.Parse(json.dumps(text), model_config_pb2.ModelConfig())


class FakeTriton(service_pb2_grpc.GRPCInferenceServiceServicer):
    """One model, `red`. Its fields say what the server does; `sent` is how each image came."""

    def __init__(self, manifest: Manifest = MANIFEST) -> None:
        self.config = front_config(manifest=manifest)
        self.states = {"red": "READY"}  # by model; empty: not loaded
        self.reads_memory = True
        self.breaks = False  # answer no request, as a server that is killed
        self.sleeps = threading.Event()  # requests wait for it
        self.sleeps.set()
        self.sent: list[tuple[str, str, tuple[int, ...]]] = []
        self._memory: dict[str, tuple[Path, int]] = {}
        self._paths: list[Path] = []  # of all regions that were ever registered
        self._detector = Detector(RedBackend(manifest))
        self._server = grpc.server(ThreadPoolExecutor(16))
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(self, self._server)
        self.port = self._server.add_insecure_port("127.0.0.1:0")
        self._server.start()
        self.url = f"triton://localhost:{self.port}/red"

    @property
    def memory(self) -> set[str]:
        """Names of the regions that are registered."""
        return set(self._memory)

    @property
    def left_behind(self) -> list[Path]:
        """Regions that still take memory."""
        return [path for path in self._paths if path.exists()]

    def forget_memory(self) -> None:
        """As a server that was started again."""
        self._memory.clear()

    def stop(self) -> None:
        """End at once, with requests under way."""
        stopped = self._server.stop(None)  # first, or requests that wait would still be answered
        self.sleeps.set()
        stopped.wait()

    def ServerLive(self, request: Any, context: Any) -> Any:
        self.sleeps.wait(20)
        return service_pb2.ServerLiveResponse(live=True)

    def ServerMetadata(self, request: Any, context: Any) -> Any:
        return service_pb2.ServerMetadataResponse(name="fake", version="2.51.0")

    def ModelReady(self, request: Any, context: Any) -> Any:
        return service_pb2.ModelReadyResponse(ready=self.states.get(request.name) == "READY")

    def RepositoryIndex(self, request: Any, context: Any) -> Any:
        index = service_pb2.RepositoryIndexResponse()
        for name, state in self.states.items():
            index.models.add(name=name, version="1", state=state)
        return index

    def ModelConfig(self, request: Any, context: Any) -> Any:
        return service_pb2.ModelConfigResponse(config=self.config)

    def SystemSharedMemoryRegister(self, request: Any, context: Any) -> Any:
        path = Path("/dev/shm") / request.key.lstrip("/")
        if not self.reads_memory or not path.exists():
            context.abort(grpc.StatusCode.INTERNAL, f"Unable to open shared memory region: '{request.key}'")
        self._memory[request.name] = path, request.byte_size
        self._paths.append(path)
        return service_pb2.SystemSharedMemoryRegisterResponse()

    def SystemSharedMemoryUnregister(self, request: Any, context: Any) -> Any:
        self._memory.pop(request.name, None)
        return service_pb2.SystemSharedMemoryUnregisterResponse()

    def ModelInfer(self, request: Any, context: Any) -> Any:
        self.sleeps.wait(20)
        if self.breaks:
            context.abort(grpc.StatusCode.UNAVAILABLE, "Socket closed")
        (given,) = request.inputs
        manifest = self.config.parameters[contract.MANIFEST].string_value
        assert request.parameters[contract.OPENED_WITH].string_param == contract.manifest_digest(manifest)
        data, way = self._data(given, request, context)
        self.sent.append((given.name, way, tuple(given.shape)))
        assert given.datatype == {"encoded": "BYTES", "pixels": "UINT8"}[given.name]
        try:
            if given.name == "encoded":
                assert tuple(given.shape) == (1, 1)
                assert len(data) == 4 + int.from_bytes(data[:4], "little")
                image: Any = load(data[4:], self._detector.load_preprocess)
            else:
                image = np.frombuffer(data, np.uint8).reshape(tuple(given.shape)[1:])
            (found,) = self._detector.detect([image])
        except UserError as error:
            context.abort(grpc.StatusCode.INTERNAL, str(error))
        return _response(request, found)

    def _data(self, given: Any, request: Any, context: Any) -> tuple[bytes, str]:
        if "shared_memory_region" not in given.parameters:
            return request.raw_input_contents[0], "message"
        name = given.parameters["shared_memory_region"].string_param
        if name not in self._memory:
            context.abort(grpc.StatusCode.NOT_FOUND, f"Unable to find shared memory region: '{name}'")
        path, _ = self._memory[name]
        size = given.parameters["shared_memory_byte_size"].int64_param
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as memory:
            return memory[:size], "memory"


def _response(request: Any, found: Detections) -> Any:
    response = service_pb2.ModelInferResponse(model_name=request.model_name)
    arrays = {"boxes": found.boxes, "scores": found.scores, "classes": found.classes}
    for output in request.outputs:
        array = arrays[output.name][None]
        kind = contract.OUTPUTS[output.name].data_type.removeprefix("TYPE_")
        response.outputs.add(name=output.name, datatype=kind, shape=array.shape)
        response.raw_output_contents.append(array.tobytes())
    return response
