"""Defects to plant into the TensorRT backend, and what must be said of each: order, host memory and device memory.

Those of execution contexts, CUDA graphs, slots and bindings are in trt_defects_more.py.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from .standin.install import Binding
from .trt_seams import ContextSeam, CudaSeam, Plant, Seams, in_context, in_cuda, together

EARLY = "POISON was read|before the copy to it was waited for"


class Defect(NamedTuple):
    """A defect, how it is planted, and a regular expression of what is said of it."""

    what: str
    plant: Plant
    caught: str
    names: str = "tensorrt-10.16.1"
    binding: Binding = "cuda-python"
    version_compatible: bool = False  # the engine that it is found with


# Order ----------------------------------------------------------------------------------------------------------------


def network_starts_at_once(cuda: CudaSeam, stream: Any, event: Any) -> None:
    """The network's stream doesn't wait for the copies of its input."""
    if cuda.follows_network(event):
        cuda.real.wait(stream, event)


def copies_start_at_once(cuda: CudaSeam, stream: Any, event: Any) -> None:
    """The copy stream doesn't wait for the network."""
    if not cuda.follows_network(event):
        cuda.real.wait(stream, event)


def copies_wait_for_the_input(cuda: CudaSeam, stream: Any, event: Any) -> None:
    """The copies back wait for the copies of the input, not for the network."""
    cuda.real.wait(stream, cuda.handles[cuda.call.input_event] if cuda.follows_network(event) else event)


def hold_the_launch_back(context: ContextSeam, stream: int) -> bool:
    """Keep a launch until `launch_after_the_event`."""
    context.seams.call.held_back = lambda: context.real.execute_async_v3(stream)
    return True


def launch_after_the_event(cuda: CudaSeam, event: Any, stream: Any) -> None:
    """Launch the network only after the event of its end was recorded."""
    CudaSeam.record(cuda, event, stream)
    if cuda.runs_network(stream) and cuda.call.held_back is not None:
        cuda.call.held_back()
        cuda.call.held_back = None


def record_on_the_copy_stream(cuda: CudaSeam, event: Any, stream: Any) -> None:
    """Record the network's events on the copy stream."""
    cuda.real.record(event, cuda.handles[cuda.call.copy_stream] if cuda.runs_network(stream) else stream)
    cuda.note_record(event, stream)


def profile_on_its_own_stream(context: ContextSeam, profile: int, stream: int) -> bool:
    """Switch the profile on a new stream."""
    cuda = context.seams.cuda
    return context.real.set_optimization_profile_async(profile, cuda.address(cuda.create_stream()))


def input_event_is_not_recorded(cuda: CudaSeam, event: Any, stream: Any) -> None:
    """Leave out the event behind the copies of the input."""
    if cuda.call.last == "copy_to_device":
        cuda.note_record(event, stream)
    else:
        CudaSeam.record(cuda, event, stream)


def network_s_start_is_not_recorded(cuda: CudaSeam, event: Any, stream: Any) -> None:
    """Leave out the event before the network."""
    if cuda.runs_network(stream) and not cuda.call.network_events:
        cuda.note_record(event, stream)
    else:
        CudaSeam.record(cuda, event, stream)


# Host memory ----------------------------------------------------------------------------------------------------------


def detections_are_not_waited_for(cuda: CudaSeam, event: Any) -> None:
    """Leave out the first wait of a call."""
    if cuda.call.waited_for != 0:
        cuda.real.synchronize_event(event)
    cuda.call.waited_for += 1


def candidates_are_not_waited_for(cuda: CudaSeam, event: Any) -> None:
    """Leave out the second wait of a call."""
    if cuda.call.waited_for != 1:
        cuda.real.synchronize_event(event)
    cuda.call.waited_for += 1


def the_network_is_waited_for(cuda: CudaSeam, event: Any) -> None:
    """Wait for the network in place of the copies back."""
    cuda.real.synchronize_event(event if cuda.call.waited_for else cuda.handles[cuda.call.network_events[-1]])
    cuda.call.waited_for += 1


def input_is_overwritten(cuda: CudaSeam, target: int, source: np.ndarray, stream: Any) -> None:
    """Change the source of a copy that is under way."""
    CudaSeam.copy_to_device(cuda, target, source, stream)
    if source.dtype == np.uint8:
        source.reshape(-1)[:64] ^= 1


def output_is_cleared(cuda: CudaSeam, target: np.ndarray, source: int, stream: Any) -> None:
    """Change the target of a copy that is under way."""
    CudaSeam.copy_to_host(cuda, target, source, stream)
    target.fill(0)


class Uncopied(np.ndarray):
    """An array whose copies are itself."""

    def copy(self, order: Any = "C") -> Any:
        return self


def pinned_memory_without_copies(cuda: CudaSeam, size: int) -> np.ndarray:
    """Pinned memory whose copies are views."""
    return cuda.real.alloc_pinned(size).view(Uncopied)


def times_are_taken_early(cuda: CudaSeam, event: Any) -> None:
    """Ask for the time between events before the wait."""
    cuda.real.seconds_between(*(cuda.handles[event] for event in cuda.call.network_events[-2:]))
    CudaSeam.synchronize_event(cuda, event)


# Memory ---------------------------------------------------------------------------------------------------------------


def free_what_is_copied_from(cuda: CudaSeam, event: Any) -> None:
    """Free device memory that a copy reads."""
    cuda.free(cuda.device_memory[cuda.base(cuda.call.copied_from)])
    CudaSeam.synchronize_event(cuda, event)


def free_what_is_copied(cuda: CudaSeam, target: int, source: np.ndarray, stream: Any) -> None:
    """Free pinned memory that a copy reads."""
    CudaSeam.copy_to_device(cuda, target, source, stream)
    cuda.real.free_pinned(cuda.pinned[source.ctypes.data])


def free_twice(cuda: CudaSeam, memory: Any) -> None:
    """Free device memory, and again."""
    cuda.real.free(memory)
    cuda.real.free(memory)


def stale_addresses(seams: Seams) -> None:
    """A context that is made anew for a shape, because buffers have grown, keeps the addresses of the old ones."""
    first: dict[Any, int] = {}

    def set_optimization_profile_async(context: ContextSeam, profile: int, stream: int) -> bool:
        context.addresses["stream"] = stream
        return ContextSeam.set_optimization_profile_async(context, profile, stream)

    def set_tensor_address(context: ContextSeam, name: str, address: int) -> bool:
        key = (context.addresses["stream"], context.get_tensor_shape("images"), name)
        return context.real.set_tensor_address(name, first.setdefault(key, address))

    in_context(set_optimization_profile_async=set_optimization_profile_async, set_tensor_address=set_tensor_address)(
        seams
    )


def sizes_of_64_bits(cuda: CudaSeam, target: int, source: np.ndarray, stream: Any) -> None:
    """Send image_sizes as int64, as far as they fit."""
    if source.dtype == np.int32:
        wide = source.astype(np.int64).reshape(-1).view(np.int32)
        source.reshape(-1)[:] = wide[: source.size]
    CudaSeam.copy_to_device(cuda, target, source, stream)


def copy_half_of_the_batch(cuda: CudaSeam, target: int, source: np.ndarray, stream: Any) -> None:
    """Send the first half of the batch only."""
    CudaSeam.copy_to_device(cuda, target, source[: len(source) // 2 + 1], stream)


def copy_the_first_rows(cuda: CudaSeam, target: np.ndarray, source: int, stream: Any) -> None:
    """Fetch the first rows of a tensor in place of an image's own."""
    CudaSeam.copy_to_host(cuda, target, cuda.base(source), stream)


DEFECTS = [
    # Order.
    Defect(
        "the engine doesn't wait for its input",
        in_cuda(wait=network_starts_at_once),
        "race: (the network|a graph) doesn't wait for copy of .* to the device",
    ),
    Defect(
        "the copy back doesn't wait for the engine",
        in_cuda(wait=copies_start_at_once),
        "race: copy of .* to the host doesn't wait for (the network|a graph)",
    ),
    Defect(
        "the copy back waits for the wrong event",
        in_cuda(wait=copies_wait_for_the_input),
        "race: copy of .* to the host doesn't wait for",
    ),
    Defect(
        "the event is recorded before the launch",
        together(in_cuda(record=launch_after_the_event), in_context(execute_async_v3=hold_the_launch_back)),
        "race: copy of .* to the host doesn't wait for the network",
    ),
    Defect(
        "the event of the network's start is not recorded",
        in_cuda(record=network_s_start_is_not_recorded),
        "time of an event",
    ),
    Defect(
        "the event is recorded on the other stream",
        in_cuda(record=record_on_the_copy_stream),
        "race: copy of .* to the host doesn't wait for",
    ),
    Defect(
        "the profile is switched on a stream of its own",
        in_context(set_optimization_profile_async=profile_on_its_own_stream),
        "race: the network doesn't wait for a switch of profile",
    ),
    Defect(
        "an event is waited for that was never recorded",
        in_cuda(record=input_event_is_not_recorded),
        "never recorded",
    ),
    # Reading and writing host memory too early.
    Defect("detections are read early", in_cuda(synchronize_event=detections_are_not_waited_for), EARLY),
    Defect("candidates are read early", in_cuda(synchronize_event=candidates_are_not_waited_for), EARLY),
    Defect("the wrong event is waited for", in_cuda(synchronize_event=the_network_is_waited_for), EARLY),
    Defect(
        "the input is overwritten while it is copied",
        in_cuda(copy_to_device=input_is_overwritten),
        "pinned memory was changed before the copy from it was waited for",
    ),
    Defect(
        "the output is cleared while it is copied",
        in_cuda(copy_to_host=output_is_cleared),
        "pinned memory was written before the copy to it was waited for",
    ),
    Defect(
        "results are views of the slot's memory",
        in_cuda(alloc_pinned=pinned_memory_without_copies),
        f"results differ|{EARLY}",
    ),
    Defect(
        "times are taken of events that weren't waited for",
        in_cuda(synchronize_event=times_are_taken_early),
        "the time of an event that wasn't waited for",
    ),
    # Memory.
    Defect(
        "buffers are freed in flight",
        in_cuda(synchronize_event=free_what_is_copied_from),
        "device memory is freed while",
    ),
    Defect(
        "pinned memory is freed in flight",
        in_cuda(copy_to_device=free_what_is_copied),
        "pinned memory is freed while",
    ),
    Defect("device memory is leaked", in_cuda(free=lambda *_: None), "not freed at the end: device"),
    Defect("pinned memory is leaked", in_cuda(free_pinned=lambda *_: None), "not freed at the end: pinned"),
    Defect(
        "streams and events are leaked",
        in_cuda(destroy_event=lambda *_: None, destroy_stream=lambda *_: None),
        "not freed at the end: event",
    ),
    Defect("graphs are leaked", in_cuda(destroy_graph=lambda *_: None), "not freed at the end: graph"),
    Defect("device memory is freed twice", in_cuda(free=free_twice), "free of device memory twice"),
    Defect(
        "contexts stay on buffers that were freed",
        stale_addresses,
        "memory that was freed",
    ),
    Defect(
        "buffers are too small",
        in_cuda(alloc=lambda cuda, size: cuda.real.alloc(size // 2 + 1)),
        "bytes at 0 of a buffer of",
    ),
    Defect(
        "pinned buffers are too small",
        in_cuda(alloc_pinned=lambda cuda, size: cuda.real.alloc_pinned(size // 2 + 1)),
        "cannot reshape|pageable|buffer of",
    ),
    Defect(
        "pageable memory",
        in_cuda(alloc_pinned=lambda cuda, size: np.empty(size, np.uint8)),
        "pageable host memory",
    ),
    Defect("sizes of the wrong type", in_cuda(copy_to_device=sizes_of_64_bits), "results differ"),
    Defect("half of the input is copied", in_cuda(copy_to_device=copy_half_of_the_batch), "results differ"),
    Defect("the candidates of the wrong rows", in_cuda(copy_to_host=copy_the_first_rows), "results differ"),
]
