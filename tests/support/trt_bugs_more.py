"""More bugs to plant into the TensorRT backend (trt_bugs.py): of CUDA graphs, slots and bindings."""

from __future__ import annotations

from .trt_bugs import BACKEND, CUDA_PYTHON, ENGINE, PYCUDA, SLOT, Bug, bug

MORE_BUGS = [
    # Graphs.
    bug(
        "a graph is captured before the first run",
        SLOT,
        "self._graphs is not None and prepared.has_run and",
        "self._graphs is not None and",
        "first run of these shapes",
    ),
    bug(
        "waiting within a capture",
        SLOT,
        "            graphs.begin_capture(self._compute)\n",
        "            graphs.begin_capture(self._compute)\n            self._wait()\n",
        "cudaStreamSynchronize while a graph is captured",
    ),
    bug(
        "allocating within a capture",
        SLOT,
        "            graphs.begin_capture(self._compute)\n",
        "            graphs.begin_capture(self._compute)\n            self._cuda.alloc(16)\n",
        "cudaMalloc while a graph is captured",
    ),
    bug(
        "an address changes after the capture",
        SLOT,
        "            prepared.graph = graph\n",
        "            prepared.graph = graph\n            prepared.context.set_tensor_address('images', 4096)\n",
        "shapes, addresses or memory have changed",
    ),
    bug(
        "a graph outlives its context",
        SLOT,
        "            prepared.graph = graph\n",
        "            prepared.graph = graph\n            prepared.context = None\n",
        "whose execution context is gone",
    ),
    bug(
        "a graph is launched after it was destroyed",
        SLOT,
        "            prepared.graph = graph\n",
        "            prepared.graph = graph\n            self._graphs.destroy_graph(graph)\n",
        "a graph that doesn't exist",
    ),
    bug(
        "our capture around RTX's own",
        BACKEND,
        "                    graphs = None\n",
        "",
        "a capture of ours around RTX's own",
        names="rtx-1.7.1",
    ),
    # Slots.
    Bug(
        "two calls on one slot",
        BACKEND,
        (("slot = self._free.pop()", "slot = self._free[-1]"), ("self._free.append(slot)", "pass")),
        # Or, where one thread has just freed the buffers that the other looks up, the slot's own bookkeeping breaks.
        "two threads at once|race|was changed|was written|KeyError",
    ),
    bug(
        "one context for all slots",
        BACKEND,
        "                for _ in range(slots):\n",
        "                shared = make_context()\n"
        "                for _ in range(slots):\n"
        "                    make_context = lambda: shared\n",
        "two threads at once|race|changed|results differ",
    ),
    bug(
        "a closed backend runs on",
        BACKEND,
        "            if self._is_closed:\n                raise",
        "            if False:\n                raise",
        "pop from empty list",
    ),
    bug(
        "closing doesn't wait",
        BACKEND,
        "            self._changed.wait_for(lambda: len(self._free) == len(self._slots))\n",
        "",
        "freed|destroyed|doesn't exist|while|KeyError|no attribute",
    ),
    bug(
        "contexts are made in two threads at once",
        BACKEND,
        "make_context = _one_at_a_time(make_context)",
        "pass",
        "an engine makes contexts in two threads at once",
    ),
    # What an engine may bring along.
    bug(
        "a version-compatible engine may not bring its code",
        ENGINE,
        "trt_runtime.engine_host_code_allowed = True",
        "pass",
        "engine_host_code_allowed is not set",
        version_compatible=True,
    ),
    bug(
        "every engine may bring code",
        ENGINE,
        "if described.version_compatible:",
        "if True:",
        "host code is allowed to an engine that needs none",
    ),
    # Bindings.
    bug(
        "a stream that synchronizes with the default stream",
        CUDA_PYTHON,
        "cudaStreamCreateWithFlags, self._cudart.cudaStreamNonBlocking",
        "cudaStreamCreateWithFlags, 0",
        "synchronizes with the default stream",
    ),
    bug(
        "events without times",
        CUDA_PYTHON,
        "cudart.cudaEventBlockingSync",
        "cudart.cudaEventBlockingSync | 2",
        "an event that takes none",
    ),
    bug(
        "copies of half the bytes",
        CUDA_PYTHON,
        "target.ctypes.data, source, target.nbytes,",
        "target.ctypes.data, source, target.nbytes // 2,",
        "results differ|POISON",
    ),
    bug(
        "copies in the wrong direction",
        CUDA_PYTHON,
        "cudaMemcpyKind.cudaMemcpyDeviceToHost",
        "cudaMemcpyKind.cudaMemcpyHostToDevice",
        "target of a copy to the device: pinned memory",
    ),
    bug(
        "instantiated graphs keep their recording",
        CUDA_PYTHON,
        "            self._call(self._cudart.cudaGraphDestroy, recorded)\n",
        "            pass\n",
        "not freed at the end: graph",
    ),
    bug(
        "the context isn't pushed",
        PYCUDA,
        "        self._call(self._primary.push)\n",
        "",
        "no context pushed|cannot pop",
    ),
    bug(
        "pycuda's copies on the default stream",
        PYCUDA,
        "self._driver.memcpy_htod_async, target, source, stream)",
        "self._driver.memcpy_htod_async, target, source)",
        "work on the default stream",
    ),
]
