"""More defects to plant into the TensorRT backend (trt_defects.py): contexts, CUDA graphs, slots and bindings."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from runtime.backends import BackendError
from runtime.backends.trt.engine import make_contexts_tensorrt
from runtime.backends.trt.slot import Slot
from runtime.cuda import CudaError

from .trt_defects import Defect
from .trt_seams import (
    ContextSeam,
    CudaSeam,
    Seams,
    in_backend,
    in_context,
    in_cuda,
    in_cudart,
    in_engine,
    in_pycuda,
    in_slots,
    in_trt_runtime,
)

# Contexts -------------------------------------------------------------------------------------------------------------


def one_shape_is_not_set(context: ContextSeam, name: str, shape: Any) -> bool:
    """Leave out the shape of image_sizes."""
    return True if name == "image_sizes" else context.real.set_input_shape(name, shape)


def one_address_is_not_set(context: ContextSeam, name: str, address: int) -> bool:
    """Leave out the address of candidate_classes."""
    return True if name == "candidate_classes" else context.real.set_tensor_address(name, address)


def scores_lie_on_boxes(context: ContextSeam, name: str, address: int) -> bool:
    """Give scores the address of boxes."""
    return ContextSeam.set_tensor_address(
        context, name, context.addresses.get(name.replace("scores", "boxes"), address)
    )


# Graphs ---------------------------------------------------------------------------------------------------------------


def captured(context: ContextSeam, stream: int) -> bool:
    """Run a context by capturing and launching its run."""
    cuda = context.seams.cuda
    cuda.real.begin_capture(stream)
    if not context.real.execute_async_v3(stream):
        with suppress(CudaError):  # the capture was invalidated
            cuda.real.end_capture(stream)
        return False
    cuda.real.launch(cuda.real.end_capture(stream), stream)
    return True


def second_run_is_captured(context: ContextSeam, stream: int) -> bool:
    """Capture every run of a context but its first."""
    return captured(context, stream) if context.has_run else ContextSeam.execute_async_v3(context, stream)


def wait_within_a_capture(cuda: CudaSeam, stream: Any) -> None:
    """Wait for the stream that is captured."""
    cuda.real.begin_capture(stream)
    cuda.real.synchronize_stream(stream)


def allocate_within_a_capture(cuda: CudaSeam, stream: Any) -> None:
    """Allocate device memory while a stream is captured."""
    cuda.real.begin_capture(stream)
    cuda.real.alloc(16)


def move_an_address_after_the_capture(cuda: CudaSeam, stream: Any) -> Any:
    """Set another address on the captured context."""
    graph = cuda.real.end_capture(stream)
    cuda.call.context().real.set_tensor_address("images", 4096)
    return graph


def drop_the_context_after_the_capture(cuda: CudaSeam, stream: Any) -> Any:
    """Drop the captured context."""
    graph = cuda.real.end_capture(stream)
    cuda.call.context().real = None
    return graph


def destroy_after_the_capture(cuda: CudaSeam, stream: Any) -> Any:
    """Destroy the captured graph."""
    graph = cuda.real.end_capture(stream)
    cuda.real.destroy_graph(graph)
    return graph


# Slots ----------------------------------------------------------------------------------------------------------------


class SharedSlot:
    """One slot in the place of several; it is closed once."""

    def __init__(self, slot: Slot) -> None:
        self.slot, self.is_closed = slot, False

    def infer(self, *arguments: Any) -> Any:
        return self.slot.infer(*arguments)

    def close(self) -> None:
        if not self.is_closed:
            self.is_closed = True
            self.slot.close()


def one_slot_for_all(seams: Seams, *arguments: Any) -> Any:
    """Give every slot the first one."""
    return seams.slots[0]() if seams.slots else SharedSlot(Slot(*arguments))


def without_a_lock(seams: Seams, cuda: Any, loaded: Any, make_context: Any, *rest: Any) -> Slot:
    """Make a slot whose contexts are made without the lock."""
    return Slot(cuda, loaded, make_contexts_tensorrt(loaded), *rest)


def one_context_for_all(seams: Seams) -> None:
    """Give every caller the first context."""
    made: list[Any] = []

    def create(original: Any, engine: Any, how: Any) -> Any:
        if not made:
            made.append(original(engine, how))
        return made[0]

    in_engine("create_execution_context", create)(seams)


def answer_when_closed(seams: Seams) -> None:
    """Answer with the last result when the backend was closed."""
    answers: list[Any] = []

    def infer(seams: Seams, original: Any, backend: Any, *feed: Any, **options: Any) -> Any:
        try:
            answers.append(original(backend, *feed, **options))
        except BackendError as error:
            if "was closed" not in str(error):
                raise
        return answers[-1]

    in_backend("infer", infer)(seams)


def close_at_once(seams: Seams, original: Any, backend: Any) -> None:
    """Close the slots before running calls have ended."""
    with seams.cuda.current():
        for slot in seams.slots:
            slot().close()
    original(backend)


def allow_code(original: Any, trt_runtime: Any, serialized: bytes) -> Any:
    """Allow host code to every engine."""
    trt_runtime.engine_host_code_allowed = True
    return original(trt_runtime, serialized)


def forbid_code(original: Any, trt_runtime: Any, serialized: bytes) -> Any:
    """Forbid host code to every engine."""
    trt_runtime.engine_host_code_allowed = False
    return original(trt_runtime, serialized)


# Bindings -------------------------------------------------------------------------------------------------------------


def half_of_what_comes_back(original: Any, target: Any, source: Any, count: int, kind: Any, stream: Any) -> Any:
    """Copy half of the bytes to the host."""
    return original(target, source, count // 2 if "DeviceToHost" in kind.name else count, kind, stream)


def the_other_way(original: Any, target: Any, source: Any, count: int, kind: Any, stream: Any) -> Any:
    """Copy to the host as if it were to the device."""
    return original(target, source, count, type(kind).cudaMemcpyHostToDevice, stream)


def keep_the_recording(original: Any, graph: Any) -> Any:
    """Keep the recording of an instantiated graph."""
    import cuda.bindings.runtime as cudart

    return (cudart.cudaError_t.cudaSuccess,)


MORE_DEFECTS = [
    # What a context needs.
    Defect(
        "no shape of one input",
        in_context(set_input_shape=one_shape_is_not_set),
        "knows no shape of image_sizes",
    ),
    Defect(
        "no shapes at all",
        in_context(set_input_shape=lambda *_: True, infer_shapes=lambda *_: []),
        "before the inputs' shapes were set",
    ),
    Defect("no profile", in_context(set_optimization_profile_async=lambda *_: True), "outside of profile 0"),
    Defect(
        "one address is not set",
        in_context(set_tensor_address=one_address_is_not_set),
        "the address of candidate_classes was not set",
    ),
    Defect("two tensors at one address", in_context(set_tensor_address=scores_lie_on_boxes), "results differ"),
    Defect("no scratch memory", in_context(set_device_memory=lambda *_: None), "scratch memory of .* was not set"),
    Defect(
        "too little scratch memory",
        in_context(set_device_memory=lambda context, memory, size: context.real.set_device_memory(memory, size // 3)),
        "scratch memory of .* was not set",
    ),
    Defect(
        "the default stream",
        in_context(execute_async_v3=lambda context, stream: context.real.execute_async_v3(0)),
        "work on the default stream",
    ),
    # Graphs.
    Defect(
        "a graph is captured before the first run",
        in_context(execute_async_v3=captured),
        "first run of these shapes",
    ),
    Defect(
        "waiting within a capture",
        in_cuda(begin_capture=wait_within_a_capture),
        "cudaStreamSynchronize while a graph is captured",
    ),
    Defect(
        "allocating within a capture",
        in_cuda(begin_capture=allocate_within_a_capture),
        "cudaMalloc while a graph is captured",
    ),
    Defect(
        "an address changes after the capture",
        in_cuda(end_capture=move_an_address_after_the_capture),
        "shapes, addresses or memory have changed",
    ),
    Defect(
        "a graph outlives its context",
        in_cuda(end_capture=drop_the_context_after_the_capture),
        "whose execution context is gone",
    ),
    Defect(
        "a graph is launched after it was destroyed",
        in_cuda(end_capture=destroy_after_the_capture),
        "a graph that doesn't exist",
    ),
    Defect(
        "our capture around RTX's own",
        in_context(execute_async_v3=second_run_is_captured),
        "a capture of ours around RTX's own",
        names="rtx-1.7.1",
    ),
    # Slots.
    Defect(
        "two calls on one slot",
        in_slots(one_slot_for_all),
        # What breaks first depends on where the threads meet: a rule of CUDA's, the slot's own bookkeeping (KeyError,
        # where one thread has just freed the buffers that the other looks up), or the numbers.
        "two threads at once|race|was changed|was written|that captures|KeyError|results differ|POISON",
    ),
    Defect(
        "one context for all slots",
        one_context_for_all,
        "two threads at once|race|changed|results differ",
    ),
    Defect("a closed backend goes on answering", answer_when_closed, "a closed backend answers"),
    Defect(
        "closing doesn't wait",
        in_backend("close", close_at_once),
        "freed|destroyed|doesn't exist|while|KeyError|no attribute",
    ),
    Defect(
        "contexts are made in two threads at once",
        in_slots(without_a_lock),
        "an engine makes contexts in two threads at once",
    ),
    # What an engine may bring along.
    Defect(
        "a version-compatible engine may not bring its code",
        in_trt_runtime("deserialize_cuda_engine", forbid_code),
        "engine_host_code_allowed is not set",
        version_compatible=True,
    ),
    Defect(
        "every engine may bring code",
        in_trt_runtime("deserialize_cuda_engine", allow_code),
        "host code is allowed to an engine that needs none",
    ),
    # Bindings.
    Defect(
        "a stream that synchronizes with the default stream",
        in_cudart("cudaStreamCreateWithFlags", lambda original, flags: original(0)),
        "synchronizes with the default stream",
    ),
    Defect(
        "events without times",
        in_cudart("cudaEventCreateWithFlags", lambda original, flags: original(flags | 2)),
        "an event that takes none",
    ),
    Defect("copies of half the bytes", in_cudart("cudaMemcpyAsync", half_of_what_comes_back), "results differ|POISON"),
    Defect(
        "copies in the wrong direction",
        in_cudart("cudaMemcpyAsync", the_other_way),
        "target of a copy to the device: pinned memory",
    ),
    Defect(
        "instantiated graphs keep their recording",
        in_cudart("cudaGraphDestroy", keep_the_recording),
        "not freed at the end: graph",
    ),
    Defect(
        "the context isn't pushed",
        in_pycuda("Context.push", lambda original, context: None),
        "no context pushed|cannot pop",
        binding="pycuda",
    ),
    Defect(
        "pycuda's copies on the default stream",
        in_pycuda("memcpy_htod_async", lambda original, target, source, stream: original(target, source)),
        "work on the default stream",
        binding="pycuda",
    ),
]
