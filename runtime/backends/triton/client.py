"""A connection to a served model: gRPC or HTTP, images in messages or in shared memory, errors in one line each."""

from __future__ import annotations

import contextlib
import json
import queue
import threading
from collections.abc import Callable, Iterator, Mapping
from http.client import HTTPException
from typing import Any, NamedTuple

import numpy as np

from ...command_names import TO_TRITON
from ...detections import Detections
from ...errors import UserError
from ...manifest import Manifest, from_json
from ..contract import BackendError
from . import answers, contract
from .address import TritonAddress
from .shared_memory import MemoryFullError, Region, make_region

TIMEOUT_S = 60.0  # of a request
_WANTED = ("boxes", "scores", "classes")


class ServedModel(NamedTuple):
    """What the server says about a model."""

    manifest: Manifest
    digest: str  # of the manifest, for requests
    server: str  # its name and version


class TritonClient:
    """A served model that was found ready and is one of `export.to_triton`. Any number of threads may use it.

    `regions` is how many images lie in shared memory at once; 0: images travel in messages. Raises BackendError in one
    line: no server, a server or model that isn't ready, no such model, another model of that name, other tensors.
    """

    def __init__(self, address: TritonAddress, timeout_s: float = TIMEOUT_S, regions: int = 0) -> None:
        self.address, self._timeout_s = address, timeout_s
        self._library = import_client(address)
        # A client of HTTP belongs to the thread that made it; that of gRPC is everyone's.
        self._one = None if address.protocol == "http" else self._connect()
        self._own = threading.local()
        self._opened: list[Any] = [] if self._one is None else [self._one]
        self._regions: queue.LifoQueue[Region] = queue.LifoQueue()  # those in use are large enough and registered
        self._is_closed = False
        try:
            self.served = self._checked()
            self.shares_memory = self._open_regions(regions)
        except BaseException:
            self.close()
            raise

    def infer_pixels(self, pixels: np.ndarray) -> Detections:
        """Detections of an image uint8 [h, w, 3] RGB, in its pixels. Raises UserError with the server's own words."""
        self.require_open()
        pixels = np.ascontiguousarray(pixels)[None]
        if self.shares_memory:
            region = self._regions.get()
            try:
                self._reached("sharing memory", lambda: region.write(pixels, self._client()))
                return self._infer(contract.PIXELS, pixels.shape, lambda given: region.give(given, pixels.nbytes))
            except MemoryFullError:
                pass  # this image travels in a message
            except UserError as error:
                if isinstance(error, BackendError) or "shared memory" not in str(error):
                    raise
                region.free()  # the server was started again and does not know it; the next image has a new one
            finally:
                self._regions.put(region)
                if self._is_closed:
                    self._free_regions()
        return self._infer(contract.PIXELS, pixels.shape, lambda given: given.set_data_from_numpy(pixels))

    def infer_encoded(self, data: bytes) -> Detections:
        """Detections of the bytes of an image file, which the server decodes. Raises as `infer_pixels`."""
        array = np.array([[data]], dtype=np.object_)
        return self._infer(contract.ENCODED, array.shape, lambda given: given.set_data_from_numpy(array))

    def require_open(self) -> None:
        """Raise BackendError once the connection was closed."""
        if self._is_closed:
            raise BackendError(f"{self.address}: the connection was closed; open it again")

    def close(self) -> None:
        """Release shared memory and connections; later requests raise BackendError."""
        self._is_closed = True
        self._free_regions()
        while self._opened:
            with contextlib.suppress(Exception):
                self._opened.pop().close()

    def _free_regions(self) -> None:
        """Free the regions that no request uses."""
        with contextlib.suppress(queue.Empty):
            while True:
                region = self._regions.get_nowait()
                with contextlib.suppress(Exception):  # the server may be gone
                    region.unregister(self._client())
                region.free()

    def _infer(self, name: str, shape: tuple[int, ...], fill: Callable[[Any], object]) -> Detections:
        self.require_open()
        library = self._library
        given = library.InferInput(name, list(shape), contract.INPUT_NAME[contract.INPUTS[name].data_type])
        fill(given)
        wanted = [library.InferRequestedOutput(output) for output in _WANTED]
        # A model that replaced this one while the client was open would have its classes misread.
        options = {"outputs": wanted, "parameters": {contract.OPENED_WITH: self.served.digest}, **self._limits()}
        result = self._reached("detecting", lambda: self._client().infer(self.address.model, [given], **options))
        with explained(self.address, "detecting"):
            boxes, scores, classes = (result.as_numpy(output) for output in _WANTED)
            return answers.detections(boxes, scores, classes, len(self.served.manifest.classes))

    def _connect(self) -> Any:
        if self.address.protocol == "grpc":
            return self._library.InferenceServerClient(self.address.server)
        timeouts = {"connection_timeout": self._timeout_s, "network_timeout": self._timeout_s}
        return self._library.InferenceServerClient(self.address.server, **timeouts)

    def _client(self) -> Any:
        """The one client of gRPC; of HTTP, the thread's own."""
        if self._one is not None:
            return self._one
        if not hasattr(self._own, "client"):
            self._own.client = self._connect()
            self._opened.append(self._own.client)
        return self._own.client

    def _checked(self) -> ServedModel:
        """Manifest of the model, once server and model were found ready and the tensors are those of the contract."""
        address, client, limits = self.address, self._client(), self._limits()
        if not self._reached("connecting", lambda: client.is_server_live(**limits)):
            raise _unreachable(address, "connecting", "it is not live")
        if not self._reached("connecting", lambda: client.is_model_ready(address.model, **limits)):
            raise BackendError(f"{address}: {_not_ready(address.model, self._reached('asking', self._index))}")
        with explained(address, "asking"):
            config = self._config()
            tensors = {kind: answers.tensors(config, kind) for kind in ("input", "output")}
            text = answers.manifest_text(config)
        if text is None:
            raise BackendError(
                f"{address}: a model that this toolkit did not write (no manifest in its parameters); write one with: "
                f"{TO_TRITON} MODEL.onnx"
            )
        for kind, expected in (("input", contract.INPUTS), ("output", contract.OUTPUTS)):
            if tensors[kind] != expected:
                raise BackendError(
                    f"{address}: its {kind}s are {_named(tensors[kind])}, expected {_named(expected)}; name the model "
                    f"in front, or write it again: {TO_TRITON} MODEL.onnx"
                )
        server = self._reached("asking", lambda: answers.server_name(self._metadata()))
        return ServedModel(from_json(text, str(address)), contract.manifest_digest(text), server)

    def _config(self) -> Any:
        found = self._client().get_model_config(self.address.model, **self._as_json())
        return found.get("config", found) if isinstance(found, dict) else found

    def _metadata(self) -> Any:
        return self._client().get_server_metadata(**self._as_json())

    def _index(self) -> list[answers.ModelState]:
        return answers.index(self._client().get_model_repository_index(**self._as_json()))

    def _limits(self) -> dict[str, Any]:
        """The time that a call over gRPC may take; over HTTP the connection has it."""
        return {} if self._one is None else {"client_timeout": self._timeout_s}

    def _as_json(self) -> dict[str, Any]:
        return {} if self._one is None else {"as_json": True, **self._limits()}

    def _open_regions(self, count: int) -> bool:
        """Whether images go through shared memory: the server reads a first region that was made for it."""
        if not count or not self.address.is_local:
            return False
        try:
            first = make_region()
            first.write(np.zeros(1, np.uint8), self._client())
        except Exception:  # another container's memory, or a platform without it
            return False
        self._regions.put(first)
        for _ in range(count - 1):
            self._regions.put(make_region())
        return True

    def _reached(self, doing: str, call: Callable[[], Any]) -> Any:
        """What the call returns. Raises BackendError where the server isn't reached, UserError where it refuses."""
        with explained(self.address, doing):
            return call()


@contextlib.contextmanager
def explained(address: TritonAddress, doing: str) -> Iterator[None]:
    """Turn errors of the client's library, and of the network below it, into one line."""
    from tritonclient.utils import InferenceServerException

    try:
        yield
    except UserError:
        raise
    except answers.AnswerError as error:
        raise BackendError(
            f"{address}: the server at {address.server} answers otherwise than Triton does ({_line(str(error))}); "
            "is it the right address and model?"
        ) from error
    except InferenceServerException as error:
        status = str(error.status() or "")
        if status.endswith("UNAVAILABLE"):
            raise _unreachable(address, doing, error.message() or "") from error
        if status.endswith("DEADLINE_EXCEEDED"):
            raise BackendError(f"{address}: no answer in time while {doing}; is the server overloaded?") from error
        if status.endswith("CANCELLED"):
            raise BackendError(f"{address}: the connection was closed while {doing}; open it again") from error
        raise UserError(_line(error.message() or str(error))) from error
    except Exception as error:
        # The libraries have errors of their own; rapidjson's is for an answer that isn't Triton's.
        theirs = type(error).__module__.split(".")[0] in ("geventhttpclient", "gevent", "rapidjson")
        if not theirs and not isinstance(error, OSError | HTTPException):
            raise
        raise _unreachable(address, doing, str(error) or type(error).__name__) from error


def import_client(address: TritonAddress) -> Any:
    """The client's library for the protocol. Raises BackendError where it isn't installed."""
    try:
        if address.protocol == "http":
            import tritonclient.http as library
        else:
            import tritonclient.grpc as library
    except ImportError as error:
        raise BackendError(
            f"{address}: Triton's client is not installed ({error}); pip install '{contract.EXTRA}'"
        ) from error
    return library


def _unreachable(address: TritonAddress, doing: str, reason: str) -> BackendError:
    return BackendError(
        f"{address}: the server at {address.server} was not reached while {doing} ({_line(reason)}); is it running, "
        f"and is that its port for {'HTTP' if address.protocol == 'http' else 'gRPC'}?"
    )


def _not_ready(model: str, index: list[answers.ModelState]) -> str:
    found = next((one for one in index if one.name == model), None)
    if found is None:
        known = ", ".join(sorted({one.name for one in index})) or "none"
        return f"the server has no model of that name; it has: {_line(known)}"
    return f"the model is not ready ({_line(found.state or 'not loaded')}); load it, and look into the server's log"


def _named(tensors: Mapping[str, contract.TensorSpec]) -> str:
    text = json.dumps({name: [one.data_type.removeprefix("TYPE_"), *one.dims] for name, one in tensors.items()})
    return _line(text)


def _line(text: str) -> str:
    """A message of the server or the network in one line of a readable length."""
    return " ".join(text.split())[:500]
