"""Runs an ONNX Runtime session with inputs and candidates bound to GPU memory.

A plain `run` copies every output to the host. Candidates take a hundred times the bytes of the detections, and nothing
reads them where `nms_exact` is 1.
"""

from __future__ import annotations

import queue
import threading
from typing import Any

import numpy as np

from ...cuda import open_cuda
from ...cuda.intake import Intake
from ...detections import RawOutputs
from ...images.device_canvases import Canvases
from ...stopwatch import Stopwatch
from ..contract import BackendError
from ..onnx_file import CANDIDATE_NAMES, DETECTION_NAMES, INPUTS

SLOTS = 2  # calls at once: one copies while the other computes
_EXACT = DETECTION_NAMES.index("nms_exact")


class BoundRuns:
    """`SLOTS` bindings of one session. Each serves one call at a time; further calls wait.

    `device_type` is ONNX Runtime's name of the memory: "cuda", or "cpu" in tests.
    """

    def __init__(self, library: Any, session: Any, device_type: str, device: int) -> None:
        self._library, self._session = library, session
        self._device_type, self._device = device_type, device
        self._lock = threading.Lock()  # guards the two below
        self._intake: Intake | None = None
        self._is_closed = False
        self._slots: queue.SimpleQueue[_Slot] = queue.SimpleQueue()
        for _ in range(SLOTS):
            self._slots.put(_Slot(session.io_binding()))

    def run(self, images: Canvases, image_sizes: np.ndarray, all_candidates: bool, stopwatch: Stopwatch) -> RawOutputs:
        """All outputs of the session. Candidates are zeros unless `all_candidates` or NMS is inexact for an image.

        Canvases of images in the device's memory are made by `intake`. Raises BackendError after `close`.
        """
        slot = self._slots.get()
        try:
            self._require_open()
            return self._run(slot, images, image_sizes, all_candidates, stopwatch)
        except BaseException:
            slot.forget()  # it may hold half-written memory, or the memory that ran out
            raise
        finally:
            self._slots.put(slot)

    def _run(
        self, slot: _Slot, images: Canvases, image_sizes: np.ndarray, all_candidates: bool, stopwatch: Stopwatch
    ) -> RawOutputs:
        with stopwatch.measure("copy_in"):
            for name, array in zip(INPUTS, (images, image_sizes), strict=True):
                slot.binding.bind_ortvalue_input(name, self._filled(slot, name, array))
            for name in DETECTION_NAMES:
                slot.binding.bind_output(name, "cpu")
            for name in CANDIDATE_NAMES:
                slot.binding.bind_output(name, self._device_type, self._device)
            slot.binding.synchronize_inputs()
        with stopwatch.measure("infer"):
            self._session.run_with_iobinding(slot.binding)
            slot.binding.synchronize_outputs()
        with stopwatch.measure("copy_out"):
            values = slot.binding.get_outputs()  # in the order in which they were bound
            # The binding owns this memory and reuses it for the next call.
            found = [value.numpy().copy() for value in values[: len(DETECTION_NAMES)]]
            candidates = values[len(DETECTION_NAMES) :]
            if all_candidates or not found[_EXACT].all():
                rest = [value.numpy().copy() for value in candidates]
            else:
                boxes, scores, classes = (value.shape() for value in candidates)
                rest = [np.zeros(boxes, np.float32), np.zeros(scores, np.float32), np.full(classes, -1, np.int32)]
            slot.binding.clear_binding_outputs()
        return RawOutputs(*found, *rest)

    def intake(self) -> Intake:
        """What takes in images in the device's memory, opened at the first call. Raises CudaError, BackendError."""
        with self._lock:
            self._require_open()
            if self._intake is None:
                self._intake = Intake(open_cuda(self._device))
            return self._intake

    def close(self) -> None:
        """Close the intake. Calls that run finish first; waiting and later ones raise BackendError."""
        with self._lock:
            if self._is_closed:
                return
            self._is_closed = True
        slots = [self._slots.get() for _ in range(SLOTS)]
        if self._intake is not None:
            self._intake.close()
        for slot in slots:
            self._slots.put(slot)

    def _require_open(self) -> None:
        if self._is_closed:
            raise BackendError("the backend was closed; open it again")

    def _filled(self, slot: _Slot, name: str, array: Canvases) -> Any:
        """Device memory with the array's content; reallocated when the shape changes."""
        value = slot.inputs.get(name)
        if value is None or tuple(value.shape()) != array.shape:
            slot.inputs.pop(name, None)  # free it before the new allocation
            value = self._library.OrtValue.ortvalue_from_shape_and_type(
                list(array.shape), array.dtype.type, self._device_type, self._device
            )
            slot.inputs[name] = value
        if isinstance(array, np.ndarray):
            value.update_inplace(array)
        else:
            intake = self._intake  # closing waits for this call
            if intake is None:
                raise BackendError("images were taken by another detector; pass the arrays themselves")
            intake.fill_and_wait(array, value.data_ptr())  # the session's stream is not known
        return value


class _Slot:
    """A binding, and the device memory of its inputs by name."""

    def __init__(self, binding: Any) -> None:
        self.binding = binding
        self.inputs: dict[str, Any] = {}

    def forget(self) -> None:
        self.binding.clear_binding_inputs()
        self.binding.clear_binding_outputs()
        self.inputs.clear()
