"""The batch that graphs take, and the settings of a pipeline that keeps a detector busy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .backends import BackendError
from .detector_protocol import DetectorProtocol
from .machine.processor import processors
from .manifest import InputShapes
from .pipeline import PipelineSettings

BATCH = 8  # default
WINDOW = 8  # batches; COCO's images have some twenty canvases, and their batches should fill up


def resolve_batch(shapes: Sequence[InputShapes], asked: int | None, usual: int = BATCH) -> int:
    """The batch for graphs of these shapes: `asked`, or else the batch nearest to `usual` that all of them take.

    Raises BackendError if a graph does not take `asked`, or no batch suits all graphs.
    """
    low, high = max(one.batch_min for one in shapes), min(one.batch_max for one in shapes)
    if low > high:
        raise BackendError(f"no batch suits all graphs: one takes {low} or more, one at most {high}; export one again")
    if asked is None:
        return max(low, min(usual, high))
    if not isinstance(asked, int) or not low <= asked <= high:
        expected = f"{low}" if low == high else f"{low} to {high}"
        raise BackendError(f"batch {asked}, but the graph was exported for {expected}; choose that or export it again")
    return asked


def pipeline_settings(
    detector: DetectorProtocol[Any], batch: int, wait_s: float | None = None, window: int = WINDOW
) -> PipelineSettings:
    """Settings that keep this detector busy: batches are ready before it needs them, and all processors load images.

    `window` is in batches: an image waits for its batch to fill until that many batches' images have overtaken it.
    """
    return PipelineSettings(
        batch=batch,
        window=window * batch,
        wait_s=wait_s,
        loaders=min(16, processors()),
        runners=max(1, detector.concurrency) + 1,  # one more assembles or postprocesses its batch meanwhile
    )
