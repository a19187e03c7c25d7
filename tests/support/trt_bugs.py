"""Bugs to plant into the TensorRT backend: edits of its source, and what must be said of each. Of order, memory and
contexts here; of graphs, slots and bindings in trt_bugs_more.py."""

from __future__ import annotations

from typing import Any, NamedTuple

SLOT, BACKEND = "runtime/backends/trt/slot.py", "runtime/backends/trt/backend.py"
ENGINE = "runtime/backends/trt/engine.py"
CUDA_PYTHON, PYCUDA = "runtime/cuda/cuda_python.py", "runtime/cuda/pycuda_driver.py"

EARLY = "POISON was read|before the copy to it was waited for"


class Bug(NamedTuple):
    what: str
    file: str
    edits: tuple[tuple[str, str], ...]  # (what stands in the source, what in its place)
    caught: str  # what is said of it
    names: str = "tensorrt-10.16.1"
    version_compatible: bool = False  # the engine that it is found with


def bug(what: str, file: str, old: str, new: str, caught: str, **more: Any) -> Bug:
    return Bug(what, file, ((old, new),), caught, **more)


BUGS = [
    # Order.
    bug(
        "the engine doesn't wait for its input",
        SLOT,
        "cuda.wait(self._compute, self._copied_in)",
        "pass",
        "race: (the network|a graph) doesn't wait for copy of .* to the device",
    ),
    bug(
        "the copy back doesn't wait for the engine",
        SLOT,
        "cuda.wait(self._copy, self._inferred)",
        "pass",
        "race: copy of .* to the host doesn't wait for (the network|a graph)",
    ),
    bug(
        "the copy back waits for the wrong event",
        SLOT,
        "cuda.wait(self._copy, self._inferred)",
        "cuda.wait(self._copy, self._copied_in)",
        "race: copy of .* to the host doesn't wait for",
    ),
    bug(
        "the event is recorded before the launch",
        SLOT,
        "cuda.record(self._infer_starts, self._compute)",
        "cuda.record(self._inferred, self._compute)",
        "never recorded|time of an event",
    ),
    bug(
        "the event is recorded on the other stream",
        SLOT,
        "cuda.record(self._inferred, self._compute)",
        "cuda.record(self._inferred, self._copy)",
        "race: copy of .* to the host doesn't wait for",
    ),
    bug(
        "the profile is switched on a stream of its own",
        SLOT,
        "set_optimization_profile_async(profile, self._cuda.address(self._compute))",
        "set_optimization_profile_async(profile, self._cuda.address(self._cuda.create_stream()))",
        "race: the network doesn't wait for a switch of profile",
    ),
    bug(
        "an event is waited for that was never recorded",
        SLOT,
        "        cuda.record(self._copied_in, self._copy)\n",
        "",
        "never recorded",
    ),
    # Reading and writing host memory too early.
    bug("detections are read early", SLOT, "cuda.synchronize_event(self._copied_out)", "pass", EARLY),
    bug("candidates are read early", SLOT, "cuda.synchronize_event(self._candidates_out)", "pass", EARLY),
    bug(
        "the wrong event is waited for",
        SLOT,
        "cuda.synchronize_event(self._copied_out)",
        "cuda.synchronize_event(self._inferred)",
        EARLY,
    ),
    bug(
        "the input is overwritten while it is copied",
        SLOT,
        "        cuda.record(self._copied_in, self._copy)\n",
        "        self._pinned['images'][:64] ^= 1\n        cuda.record(self._copied_in, self._copy)\n",
        "pinned memory was changed before the copy from it was waited for",
    ),
    bug(
        "the output is cleared while it is copied",
        SLOT,
        "        cuda.record(self._copied_out, self._copy)\n",
        "        self._pinned['nms_exact'].fill(0)\n        cuda.record(self._copied_out, self._copy)\n",
        "pinned memory was written before the copy to it was waited for",
    ),
    bug(
        "results are views of the slot's memory",
        SLOT,
        "self._host(name, shapes).copy() for name in DETECTION_NAMES",
        "self._host(name, shapes) for name in DETECTION_NAMES",
        f"results differ|{EARLY}",
    ),
    bug(
        "times are taken of events that weren't waited for",
        SLOT,
        "        cuda.synchronize_event(self._copied_out)\n",
        "        cuda.seconds_between(self._infer_starts, self._inferred)\n"
        "        cuda.synchronize_event(self._copied_out)\n",
        "the time of an event that wasn't waited for",
    ),
    # Memory.
    bug(
        "buffers are freed in flight",
        SLOT,
        "        cuda.synchronize_event(self._copied_out)\n",
        "        self._release_buffers()\n        cuda.synchronize_event(self._copied_out)\n",
        "memory is freed while|graph is destroyed while",
    ),
    bug(
        "pinned memory is freed in flight",
        SLOT,
        "        cuda.record(self._copied_in, self._copy)\n",
        "        cuda.record(self._copied_in, self._copy)\n        cuda.free_pinned(self._pinned['images'])\n",
        "pinned memory is freed while",
    ),
    bug(
        "device memory is leaked",
        SLOT,
        "self._cuda.free(self._device.popitem()[1])",
        "self._device.popitem()",
        "not freed at the end: device",
    ),
    bug(
        "pinned memory is leaked",
        SLOT,
        "self._cuda.free_pinned(self._pinned.popitem()[1])",
        "self._pinned.popitem()",
        "not freed at the end: pinned",
    ),
    bug("streams and events are leaked", SLOT, "        self._handles.close()\n", "", "not freed at the end: event"),
    bug(
        "graphs are leaked",
        SLOT,
        "            self._graphs.destroy_graph(graph)\n\n    def _release",
        "            pass\n\n    def _release",
        "not freed at the end: graph",
    ),
    bug(
        "device memory is freed twice",
        SLOT,
        "self._cuda.free(self._device.popitem()[1])",
        "memory = self._device.popitem()[1]; self._cuda.free(memory); self._cuda.free(memory)",
        "free of device memory twice",
    ),
    bug(
        "contexts stay on buffers that were freed",
        SLOT,
        "        for shape in list(self._prepared):\n            self._forget(shape)\n        self._sizes",
        "        self._sizes",
        "memory that was freed",
    ),
    bug(
        "buffers are too small",
        SLOT,
        "self._cuda.alloc(max(size, 1))",
        "self._cuda.alloc(size // 2 + 1)",
        "bytes at 0 of a buffer of",
    ),
    bug(
        "pinned buffers are too small",
        SLOT,
        "alloc_pinned(max(sizes[name], 1))",
        "alloc_pinned(sizes[name] // 2 + 1)",
        "cannot reshape|pageable|buffer of",
    ),
    bug(
        "pageable memory",
        SLOT,
        "self._cuda.alloc_pinned(max(sizes[name], 1))",
        "np.empty(max(sizes[name], 1), np.uint8)",
        "pageable host memory",
    ),
    bug(
        "sizes of the wrong type",
        SLOT,
        "self._sizes: dict[str, int] = {}",
        "self._sizes = {}; _DTYPES['image_sizes'] = np.dtype(np.int64)",
        "results differ",
    ),
    bug(
        "half of the input is copied",
        SLOT,
        "cuda.copy_to_device(self._address(name), self._host(name, shapes), ",
        "cuda.copy_to_device(self._address(name), self._host(name, shapes)[: len(images) // 2 + 1], ",
        "results differ",
    ),
    bug(
        "the candidates of the wrong rows",
        SLOT,
        "self._address(name) + row * host[row].nbytes",
        "self._address(name)",
        "results differ",
    ),
    # What a context needs.
    bug(
        "no shape of one input",
        SLOT,
        '("images", (batch, height, width, 3)), ("image_sizes", (batch, 2))',
        '("images", (batch, height, width, 3)),',
        "knows no shape of image_sizes",
    ),
    Bug(
        "no shapes at all",
        SLOT,
        (
            ("if not context.set_input_shape(name, dims):", "if False:"),
            ("missing = context.infer_shapes()", "missing = []"),
        ),
        "before the inputs' shapes were set",
    ),
    bug(
        "no profile",
        SLOT,
        "if not context.set_optimization_profile_async(profile, self._cuda.address(self._compute)):",
        "if False:",
        "outside of profile 0",
    ),
    bug(
        "one address is not set",
        SLOT,
        "            for name in shapes:\n",
        "            for name in list(shapes)[:-1]:\n",
        "the address of candidate_classes was not set",
    ),
    bug(
        "two tensors at one address",
        SLOT,
        "set_tensor_address(name, self._address(name))",
        "set_tensor_address(name, self._address('candidate_boxes' if 'scores' in name else name))",
        "results differ",
    ),
    bug(
        "no scratch memory",
        SLOT,
        "            context.set_device_memory(self._address(_SCRATCH), self._sizes[_SCRATCH])\n",
        "",
        "scratch memory of .* was not set",
    ),
    bug(
        "too little scratch memory",
        SLOT,
        "self._address(_SCRATCH), self._sizes[_SCRATCH])",
        "self._address(_SCRATCH), self._sizes[_SCRATCH] // 3)",
        "scratch memory of .* was not set",
    ),
    bug(
        "the default stream",
        SLOT,
        "execute_async_v3(self._cuda.address(self._compute))",
        "execute_async_v3(0)",
        "work on the default stream",
    ),
]
