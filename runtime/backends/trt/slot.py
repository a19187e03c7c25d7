"""One slot of the TensorRT backend: the streams, buffers and execution contexts that one call of `infer` uses alone.

A shape is prepared when it first occurs. Each shape has its own execution context, as NVIDIA advises for CUDA graphs:
another shape on the same context would invalidate the graph. The contexts of a slot share one block of scratch memory,
since only one of them runs at a time. Buffers grow to the size that the largest shape so far needs. Several contexts
may use one optimization profile (since TensorRT 10.0).

B images, H and W of the canvas.
"""

from __future__ import annotations

import math
import warnings
from collections import OrderedDict
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...cuda import Cuda, CudaError, Graphs, OutOfMemory
from ...cuda.intake import Intake
from ...detections import RawOutputs
from ...images.device_canvases import Canvases
from ...stopwatch import Stopwatch
from ..contract import BackendError, BatchTooLarge
from ..onnx_file import CANDIDATE_NAMES, DETECTION_NAMES, INPUTS, OUTPUTS
from .engine import LoadedEngine

Shape = tuple[int, int, int]  # B, H, W
_DTYPES = {name: np.dtype(dtype) for name, (dtype, _) in (INPUTS | OUTPUTS).items()}
_SCRATCH = "scratch"  # a name beside the tensors' names


@dataclass
class PreparedShape:
    """An execution context with profile, shapes and addresses set, and its CUDA graph once that was captured."""

    context: Any
    shapes: dict[str, tuple[int, ...]]
    has_run: bool = False
    graph: Any = None
    is_capturable: bool = True


class Slot:
    """Serves one call at a time. Every method requires the device to be current.

    CUDA graphs are captured with `graphs`; None: not at all. The `most_shapes` most recently used shapes stay prepared.
    """

    def __init__(
        self, cuda: Cuda, loaded: LoadedEngine, make_context: Callable[[], Any], graphs: Graphs | None, most_shapes: int
    ) -> None:
        self._cuda, self._loaded, self._make_context = cuda, loaded, make_context
        self._graphs, self._most_shapes = graphs, most_shapes
        self._prepared: OrderedDict[Shape, PreparedShape] = OrderedDict()
        self._sizes: dict[str, int] = {}  # of the buffers below, in bytes
        self._device: dict[str, Any] = {}  # device memory of each tensor, and scratch memory
        self._pinned: dict[str, np.ndarray] = {}  # host memory of each tensor
        with ExitStack() as handles:
            self._copy = _create(handles, cuda.create_stream, cuda.destroy_stream)
            self._compute = _create(handles, cuda.create_stream, cuda.destroy_stream)
            # In the order in which a call records them.
            self._copy_in_starts = _create(handles, cuda.create_event, cuda.destroy_event)
            self._copied_in = _create(handles, cuda.create_event, cuda.destroy_event)
            self._infer_starts = _create(handles, cuda.create_event, cuda.destroy_event)
            self._inferred = _create(handles, cuda.create_event, cuda.destroy_event)
            self._copied_out = _create(handles, cuda.create_event, cuda.destroy_event)
            self._candidates_start = _create(handles, cuda.create_event, cuda.destroy_event)
            self._candidates_out = _create(handles, cuda.create_event, cuda.destroy_event)
            self._handles = handles.pop_all()

    def infer(
        self,
        images: Canvases,
        image_sizes: np.ndarray,
        profile: int,
        min_batch: int,
        all_candidates: bool,
        stopwatch: Stopwatch | None,
        intake: Intake,
    ) -> RawOutputs:
        """Run checked inputs in an optimization profile, which takes batches from `min_batch` on.

        `intake` makes the canvases of images in the device's memory, and took these in. Raises
        BackendError, BatchTooLarge, CudaError; the slot stays usable.
        """
        batch, height, width, _ = images.shape
        prepared = self._prepare((batch, height, width), profile, min_batch)
        try:
            return self._run(prepared, images, image_sizes, all_candidates, stopwatch, intake)
        except BaseException:
            self._wait()  # the next call must not find buffers in use
            raise

    def close(self) -> None:
        """Wait for queued work and free everything. Call it once."""
        self._wait()
        self._release_buffers()
        self._handles.close()
        # These are the last references, with which pycuda destroys its objects while the device is current.
        del self._copy, self._compute, self._copy_in_starts, self._copied_in, self._infer_starts
        del self._inferred, self._copied_out, self._candidates_start, self._candidates_out

    def _run(
        self,
        prepared: PreparedShape,
        images: Canvases,
        image_sizes: np.ndarray,
        all_candidates: bool,
        stopwatch: Stopwatch | None,
        intake: Intake,
    ) -> RawOutputs:
        cuda, shapes = self._cuda, prepared.shapes
        if self._graphs is not None and prepared.has_run and prepared.is_capturable and prepared.graph is None:
            self._capture(self._graphs, prepared)

        arrays = {"images": images, "image_sizes": image_sizes}
        for name, value in arrays.items():
            if isinstance(value, np.ndarray):
                np.copyto(self._host(name, shapes), value)
        cuda.record(self._copy_in_starts, self._copy)
        for name, value in arrays.items():
            if isinstance(value, np.ndarray):
                cuda.copy_to_device(self._address(name), self._host(name, shapes), self._copy)
            else:
                intake.fill(value, self._address(name), self._host(name, shapes), self._copy)
        cuda.record(self._copied_in, self._copy)

        cuda.wait(self._compute, self._copied_in)
        cuda.record(self._infer_starts, self._compute)
        if prepared.graph is None or self._graphs is None:
            self._execute(prepared)
        else:
            self._graphs.launch(prepared.graph, self._compute)
        cuda.record(self._inferred, self._compute)

        cuda.wait(self._copy, self._inferred)
        for name in DETECTION_NAMES:
            cuda.copy_to_host(self._host(name, shapes), self._address(name), self._copy)
        cuda.record(self._copied_out, self._copy)
        cuda.synchronize_event(self._copied_out)
        prepared.has_run = True
        outputs = {name: self._host(name, shapes).copy() for name in DETECTION_NAMES}

        batch = len(images)
        rows = range(batch) if all_candidates else np.flatnonzero(outputs["nms_exact"][:, 0] == 0).tolist()
        outputs |= self._candidates(shapes, rows)
        if stopwatch is not None:
            stopwatch.add("copy_in", cuda.seconds_between(self._copy_in_starts, self._copied_in))
            stopwatch.add("infer", cuda.seconds_between(self._infer_starts, self._inferred))
            stopwatch.add("copy_out", cuda.seconds_between(self._inferred, self._copied_out))
            if rows:
                stopwatch.add("copy_out", cuda.seconds_between(self._candidates_start, self._candidates_out))
        return RawOutputs(**outputs)

    def _candidates(self, shapes: dict[str, tuple[int, ...]], rows: range | list[int]) -> dict[str, np.ndarray]:
        """Candidates of the images in `rows`, copied from the device; those of other images are empty."""
        outputs = {name: np.zeros(shapes[name], _DTYPES[name]) for name in CANDIDATE_NAMES}
        outputs["candidate_classes"].fill(-1)
        if not rows:
            return outputs
        cuda = self._cuda
        cuda.record(self._candidates_start, self._copy)
        for name in CANDIDATE_NAMES:
            host = self._host(name, shapes)
            if len(rows) == len(host):
                cuda.copy_to_host(host, self._address(name), self._copy)
                continue
            for row in rows:
                cuda.copy_to_host(host[row], self._address(name) + row * host[row].nbytes, self._copy)
        cuda.record(self._candidates_out, self._copy)
        cuda.synchronize_event(self._candidates_out)
        for name in CANDIDATE_NAMES:
            outputs[name][rows] = self._host(name, shapes)[rows]
        return outputs

    def _execute(self, prepared: PreparedShape) -> None:
        if not prepared.context.execute_async_v3(self._cuda.address(self._compute)):
            raise BackendError(
                f"TensorRT could not run images {list(prepared.shapes['images'])}: {self._loaded.errors.reason()}"
            )

    def _capture(self, graphs: Graphs, prepared: PreparedShape) -> None:
        """Capture a run of a context that has run before, so that one-time work of TensorRT isn't in the graph."""
        graph = None
        try:
            graphs.begin_capture(self._compute)
            try:
                self._execute(prepared)
            finally:
                graph = graphs.end_capture(self._compute)
        except (BackendError, CudaError) as error:
            if graph is not None:
                graphs.destroy_graph(graph)
            prepared.is_capturable = False
            warnings.warn(f"no CUDA graph, so launches cost more: {error}", RuntimeWarning, stacklevel=2)
        else:
            prepared.graph = graph

    def _prepare(self, shape: Shape, profile: int, min_batch: int) -> PreparedShape:
        if shape in self._prepared:
            self._prepared.move_to_end(shape)
            return self._prepared[shape]
        while len(self._prepared) >= self._most_shapes:
            self._forget(next(iter(self._prepared)))
        context = self._make_context()
        if context is None:
            raise BackendError(f"TensorRT could not make an execution context: {self._loaded.errors.reason()}")
        try:
            # On the stream of the later run, so that what the switch copies has arrived before the run.
            if not context.set_optimization_profile_async(profile, self._cuda.address(self._compute)):
                raise BackendError(f"TensorRT could not choose profile {profile}: {self._loaded.errors.reason()}")
            shapes, sizes = self._set_shape(context, shape)
            self._reserve(context, shape, sizes, min_batch)
            context.set_device_memory(self._address(_SCRATCH), self._sizes[_SCRATCH])
            for name in shapes:
                if not context.set_tensor_address(name, self._address(name)):
                    raise BackendError(f"TensorRT could not set the address of {name}: {self._loaded.errors.reason()}")
        except BaseException:
            self._wait()  # for the profile switch, which the context must outlive
            del context
            raise
        self._prepared[shape] = PreparedShape(context, shapes)
        return self._prepared[shape]

    def _set_shape(self, context: Any, shape: Shape) -> tuple[dict[str, tuple[int, ...]], dict[str, int]]:
        """Set the inputs' shapes. Returns all tensors' shapes, and the bytes of each and of the scratch memory."""
        batch, height, width = shape
        for name, dims in (("images", (batch, height, width, 3)), ("image_sizes", (batch, 2))):
            if not context.set_input_shape(name, dims):
                raise BackendError(f"TensorRT does not take {name} {list(dims)}: {self._loaded.errors.reason()}")
        try:
            missing = context.infer_shapes()
        except RuntimeError as error:
            raise BackendError(f"TensorRT cannot run images {list(shape)}: {self._loaded.errors.reason()}") from error
        if missing:
            raise BackendError(f"TensorRT knows no shape of {', '.join(missing)}: {self._loaded.errors.reason()}")
        shapes = {name: tuple(context.get_tensor_shape(name)) for name in _DTYPES}
        sizes = {name: math.prod(shapes[name]) * _DTYPES[name].itemsize for name in _DTYPES}
        sizes[_SCRATCH] = context.update_device_memory_size_for_shapes()
        return shapes, sizes

    def _reserve(self, context: Any, shape: Shape, sizes: dict[str, int], min_batch: int) -> None:
        """Ensure buffers of at least these sizes. Where they grow, shapes prepared on the old ones are dropped."""
        if all(size <= self._sizes.get(name, 0) for name, size in sizes.items()):
            return
        both = {name: max(size, self._sizes.get(name, 0)) for name, size in sizes.items()}
        self._release_buffers()
        for wanted in (both, sizes):
            try:
                self._allocate(wanted)
            except OutOfMemory as error:
                self._release_buffers()
                failure = error
            else:
                return
        advice, fits = self._advice(context, shape, sizes, min_batch)
        raise BatchTooLarge(f"{failure}: {advice}", fits) from failure

    def _allocate(self, sizes: dict[str, int]) -> None:
        for name, size in sizes.items():
            self._device[name] = self._cuda.alloc(max(size, 1))
        for name in _DTYPES:
            self._pinned[name] = self._cuda.alloc_pinned(max(sizes[name], 1))
        self._sizes = sizes

    def _advice(self, context: Any, shape: Shape, sizes: dict[str, int], min_batch: int) -> tuple[str, int | None]:
        """Advice for a batch that doesn't fit, and the largest of batch/2, batch/4, … that does, else None."""
        batch, height, width = shape
        free, wanted = self._cuda.free_bytes(), sum(sizes.values())
        advice = "no smaller batch of the engine's range fits; use a smaller canvas, fewer slots, or free device memory"
        fits = None
        while fits is None and batch // 2 >= max(min_batch, 1):
            batch //= 2
            _, sizes = self._set_shape(context, (batch, height, width))
            if self._fits(sizes):
                advice, fits = f"batch {batch} fits", batch
        asked = f"batch {shape[0]} of {width}×{height} needs {wanted / 2**20:.1f} MiB per slot"
        return f"{asked}, {free / 2**20:.1f} MiB are free; {advice}", fits

    def _fits(self, sizes: dict[str, int]) -> bool:
        """Whether device memory of these sizes can be had. CUDA gives it in blocks: a sum of bytes doesn't tell."""
        taken = []
        try:
            for size in sizes.values():
                taken.append(self._cuda.alloc(max(size, 1)))
        except OutOfMemory:
            return False
        finally:
            for memory in taken:
                self._cuda.free(memory)
        return True

    def _forget(self, shape: Shape) -> None:
        """Drop a prepared shape, whose work must have been waited for."""
        graph = self._prepared.pop(shape).graph
        if graph is not None and self._graphs is not None:
            self._graphs.destroy_graph(graph)

    def _release_buffers(self) -> None:
        for shape in list(self._prepared):
            self._forget(shape)
        self._sizes = {}
        while self._device:
            self._cuda.free(self._device.popitem()[1])
        while self._pinned:
            self._cuda.free_pinned(self._pinned.popitem()[1])

    def _wait(self) -> None:
        self._cuda.synchronize_stream(self._compute)
        self._cuda.synchronize_stream(self._copy)

    def _address(self, name: str) -> int:
        return self._cuda.address(self._device[name])

    def _host(self, name: str, shapes: dict[str, tuple[int, ...]]) -> np.ndarray:
        """The pinned memory of a tensor in the tensor's shape. The caller makes sure that no copy uses it."""
        shape, dtype = shapes[name], _DTYPES[name]
        return self._pinned[name][: math.prod(shape) * dtype.itemsize].view(dtype).reshape(shape)


def _create(handles: ExitStack, create: Callable[[], Any], destroy: Callable[[Any], None]) -> Any:
    """Create a handle that is destroyed when `handles` closes."""
    handle = create()
    handles.callback(destroy, handle)
    return handle
