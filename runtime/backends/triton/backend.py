"""A served model as a backend: each canvas' image is a request, and the server makes its own batches.

The client resizes images, so that the server, whose model resizes to the same size, changes no pixel. Detections are
those of the file, to the last bit.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np

from ...detections import Detections, RawOutputs
from ...images.preprocess import plan
from ...stopwatch import Stopwatch
from ..contract import BackendError
from ..feeds import check_feed
from .address import TritonAddress
from .client import TIMEOUT_S, TritonClient

REQUESTS = 32  # most at once
Item = TypeVar("Item")
Result = TypeVar("Result")


class TritonBackend:
    """A `Backend` whose graph runs in a Triton Inference Server. Raises as `TritonClient`."""

    def __init__(self, address: TritonAddress, *, timeout_s: float = TIMEOUT_S, share_memory: bool = True) -> None:
        self.client = TritonClient(address, timeout_s, regions=REQUESTS if share_memory else 0)
        served = self.client.served
        # A batch below the graph's minimum is filled up in the server.
        inputs = dataclasses.replace(served.manifest.inputs, batch_min=1)
        self.manifest = dataclasses.replace(served.manifest, inputs=inputs)
        way = "gRPC" if address.protocol == "grpc" else "HTTP"
        through = ", images in shared memory" if self.client.shares_memory else ""
        self.description = f"Triton ({served.server.strip()}) at {address.server} over {way}{through}"
        self.concurrency = 2
        self._senders = ThreadPoolExecutor(REQUESTS, "triton")

    def infer(
        self,
        images: np.ndarray,
        image_sizes: np.ndarray,
        *,
        all_candidates: bool = False,
        stopwatch: Stopwatch | None = None,
    ) -> RawOutputs:
        """As `Backend.infer`, without candidates: the server has run NMS. One stage, "infer".

        Raises BackendError where the server isn't reached or refuses the images, or where candidates are asked for.
        """
        check_feed(images, image_sizes, self.manifest)
        if all_candidates:
            raise BackendError(f"{self.client.address}: a served model gives no candidates; run its file instead")
        sizes = [(int(height), int(width)) for height, width in image_sizes]
        for size in sizes:
            if plan(size, self.manifest.preprocess).resized_hw != size:
                raise BackendError(
                    f"{self.client.address}: the server resizes images to sides {self.manifest.preprocess.short_side}/"
                    f"{self.manifest.preprocess.long_side}, so it cannot see one at {size[1]}×{size[0]}; run the "
                    "model's file instead"
                )
        stopwatch = stopwatch or Stopwatch()
        with stopwatch.measure("infer"):
            regions = [image[:height, :width] for image, (height, width) in zip(images, sizes, strict=True)]
            found = self.at_once(self.client.infer_pixels, regions)
        return as_outputs(found)

    def at_once(self, request: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
        """What `request` returns for each item; REQUESTS of them are under way at once. Raises BackendError."""
        self.client.require_open()
        return list(self._senders.map(request, items))

    def close(self) -> None:
        """Close the connection; later calls of `infer` raise BackendError."""
        self.client.close()
        self._senders.shutdown(wait=False)


def as_outputs(found: list[Detections]) -> RawOutputs:
    """Detections of a batch's images, in canvas pixels, as the graph outputs them when NMS was exact."""
    batch, rows = len(found), max((len(one) for one in found), default=0)
    boxes, scores = np.zeros((batch, rows, 4), np.float32), np.zeros((batch, rows), np.float32)
    classes = np.full((batch, rows), -1, np.int32)
    for index, one in enumerate(found):
        boxes[index, : len(one)], scores[index, : len(one)] = one.boxes, one.scores
        classes[index, : len(one)] = one.classes
    return RawOutputs(
        num_detections=np.array([[len(one)] for one in found], np.int32).reshape(batch, 1),
        detection_boxes=boxes,
        detection_scores=scores,
        detection_classes=classes,
        nms_exact=np.ones((batch, 1), np.int32),
        candidate_boxes=np.zeros((batch, 0, 4), np.float32),
        candidate_scores=np.zeros((batch, 0), np.float32),
        candidate_classes=np.zeros((batch, 0), np.int32),
    )
