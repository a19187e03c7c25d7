"""A detector whose model a Triton Inference Server runs.

with TritonDetector("triton://localhost:8001/model") as detector:
    found = detector("photo.jpg")
    found, *errors = detector.detect_encoded([Path("photo.jpg").read_bytes()])
"""

from __future__ import annotations

from collections.abc import Sequence

from ..backends.triton.address import TritonAddress
from ..backends.triton.backend import TritonBackend
from ..backends.triton.client import TIMEOUT_S
from ..detections import Detections
from ..detector import Detector
from ..errors import UserError
from ..images.inputs import Encoded, encoded_bytes


class TritonDetector(Detector):
    """A `Detector` on a served model, which also sends files as they are.

    `url` is `triton://host:port/model` (gRPC) or `triton+http://host:port/model`; without the model's name, `model` is
    that. A server on this machine gets images through shared memory where it can read it. Images are decoded and
    resized here; `detect_encoded` leaves both to the server. Raises BackendError where the server or the model isn't
    ready, or is another's.
    """

    def __init__(
        self, url: str, model: str | None = None, *, timeout_s: float = TIMEOUT_S, share_memory: bool = True
    ) -> None:
        backend = TritonBackend(TritonAddress.parse(url, model), timeout_s=timeout_s, share_memory=share_memory)
        super().__init__(backend)
        self._served = backend

    def detect_encoded(self, files: Sequence[Encoded]) -> list[Detections | UserError]:
        """Detections of image files (paths, bytes or open files), each in its own pixels; the server decodes them.

        An image that cannot be read, or that the server refuses, has its error in its place. Raises BackendError once
        the detector is closed.
        """
        return self._served.at_once(self._one, files)

    def _one(self, file: Encoded) -> Detections | UserError:
        try:
            return self._served.client.infer_encoded(encoded_bytes(file))
        except UserError as error:
            return error
