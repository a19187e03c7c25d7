"""The stand-in's IExecutionContext: what must be set before it runs, and what it then reads and writes."""

from __future__ import annotations

import threading
import time
import types
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from . import network
from .driver import Driver
from .parts import Access, Operation, Stream

NETWORK_SECONDS = 0.002


class Shared:
    """What the objects of one library share."""

    def __init__(self, driver: Driver, module: types.ModuleType) -> None:
        self.driver = driver
        self.module: Any = module
        self.alive: weakref.WeakSet[Any] = weakref.WeakSet()
        self.log: Callable[[Any, str], None] = lambda *_: None
        self.compiled: list[str] = []  # shapes whose kernels RTX had to compile
        self.failing_runs = 0  # how many runs fail from now on

    def made(self, thing: Any) -> None:
        self.alive.add(thing)

    def fail(self, message: str) -> None:
        self.log(self.module.ILogger.ERROR, message)

    def needs_device(self, what: str) -> None:
        """pycuda's users forget to push the context: TensorRT would then make one of its own."""
        stack = getattr(self.driver.current, "stack", None)
        if stack == []:
            raise self.driver.violation(f"{what} with no context pushed in this thread")


class Context:
    """IExecutionContext; one thread at a time may use it."""

    _shared: Shared

    def __init__(self, engine: Any, runtime_config: Any) -> None:
        self._shared.made(self)
        self._engine, self._config = engine, runtime_config
        self._profile = 0
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        self._memory: tuple[int, int] | None = None
        self._version = 0  # of all that a captured graph relies on
        self._ran: tuple[int, Operation] | None = None  # the version that last ran uncaptured
        self._state = self._shared.driver.state()  # its inside: one run at a time
        self._user: int | None = None  # the thread that is in a method

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """A context is for one thread at a time."""
        thread = threading.get_ident()
        if self._user not in (None, thread):
            raise self._shared.driver.violation("an execution context is used by two threads at once")
        self._user = thread
        time.sleep(0)  # lets another thread in
        try:
            yield
        finally:
            self._user = None

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        driver = self._shared.driver
        with self._alone(), driver.call("set_optimization_profile_async", forbidden_in_capture=True):
            if not 0 <= profile_index < self._engine.num_optimization_profiles:
                self._shared.fail(f"no profile {profile_index}")
                return False
            stream = driver.stream(stream_handle)
            self._profile, self._shapes = profile_index, {}
            self._version += 1
            driver.queue(stream, Operation("a switch of profile", stream, [Access(self._state, 0, 1, True)]))
            return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        with self._alone():
            assert name in network.INPUTS
            least, _, most = self._engine.get_tensor_profile_shape(name, self._profile)
            if len(shape) != len(least) or not all(a <= n <= b for a, n, b in zip(least, shape, most, strict=True)):
                self._shared.fail(f"{name} {shape} is outside of profile {self._profile}")
                return False
            self._shapes[name] = tuple(int(n) for n in shape)
            self._version += 1
            return True

    def infer_shapes(self) -> list[str]:
        with self._alone():
            return [name for name in network.INPUTS if name not in self._shapes]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        with self._alone():
            if set(self._shapes) != set(network.INPUTS):
                raise self._shared.driver.violation(f"the shape of {name} before the inputs' shapes were set")
            return self._all_shapes()[name]

    def _all_shapes(self) -> dict[str, tuple[int, ...]]:
        return network.shapes_of(*self._shapes["images"][:3])

    def update_device_memory_size_for_shapes(self) -> int:
        with self._alone():
            if set(self._shapes) != set(network.INPUTS):
                return 0
            return int(np.prod(self._shapes["images"][:3])) * self._engine._parsed["scratch_per_pixel"]

    def set_device_memory(self, memory: int, size: int) -> None:
        with self._alone(), self._shared.driver.call("set_device_memory"):
            assert memory % 256 == 0
            self._memory = (int(memory), int(size))
            self._version += 1

    def set_tensor_address(self, name: str, memory: int) -> bool:
        with self._alone():
            if name not in self._engine._names:
                self._shared.fail(f"no tensor {name}")
                return False
            self._addresses[name] = int(memory)
            self._version += 1
            return True

    def execute_async_v3(self, stream_handle: int) -> bool:
        driver = self._shared.driver
        self._shared.needs_device("execute_async_v3")
        with self._alone(), driver.call("execute_async_v3"):
            stream = driver.stream(stream_handle)
            operation = self._operation(stream)
            if self._shared.failing_runs:
                self._shared.failing_runs -= 1
                self._shared.fail("Error Code 2: Internal Error\n(told to fail)")
                if stream.capture is not None:
                    stream.capture.is_broken = True
                return False
            if stream.capture is not None:
                if self._config is not None and self._config._graphs is not None:
                    raise driver.violation("a capture of ours around RTX's own")
                if self._ran is None or self._ran[0] != self._version or not driver.host_knows(self._ran[1]):
                    stream.capture.is_broken = True
                    self._shared.fail("operation not permitted when stream is capturing: first run of these shapes")
                    return False
            driver.queue(stream, operation)
            if stream.capture is None:
                self._ran = (self._version, operation)
            self._compile()
            return True

    def _compile(self) -> None:
        if self._config is not None and self._config._cache is not None:
            shape = str(self._shapes["images"])
            if shape not in self._config._cache._compiled:
                self._config._cache._compiled.add(shape)
                self._shared.compiled.append(shape)

    def _operation(self, stream: Stream) -> Operation:
        driver = self._shared.driver
        if unset := [name for name in network.INPUTS if name not in self._shapes]:
            raise driver.violation(f"the shape of {', '.join(unset)} was not set")
        if unset := [name for name in self._engine._names if name not in self._addresses]:
            raise driver.violation(f"the address of {', '.join(unset)} was not set")
        needed = int(np.prod(self._shapes["images"][:3])) * self._engine._parsed["scratch_per_pixel"]
        if self._memory is None or self._memory[1] < needed:
            raise driver.violation(f"scratch memory of {needed} bytes was not set")
        places, accesses = {}, [Access(self._state, 0, 1, True)]
        for name, shape in self._all_shapes().items():
            dtype = np.dtype((network.INPUTS | network.OUTPUTS)[name])
            size = int(np.prod(shape)) * dtype.itemsize
            allocation, start = driver.find(self._addresses[name], size, "device", f"address of {name}")
            places[name] = (allocation, start, size, dtype, shape)
            accesses.append(Access(allocation, start, start + size, name in network.OUTPUTS))
        scratch, start = driver.find(*self._memory, "device", "scratch memory")
        accesses.append(Access(scratch, start, start + needed, True))

        def run() -> None:
            scratch.data[start : start + needed] = 0x3C
            feeds = [_read(places[name]) for name in network.INPUTS]
            results = network.run(*_sane(feeds))
            for name, result in results.items():
                allocation, at, size, dtype, _ = places[name]
                allocation.data[at : at + size] = np.frombuffer(result.astype(dtype).tobytes(), np.uint8)

        version, me = self._version, weakref.ref(self)

        def check() -> None:
            context = me()
            if context is None:
                raise driver.violation("a graph is launched whose execution context is gone")
            if context._version != version:
                raise driver.violation("a graph is launched whose context's shapes, addresses or memory have changed")

        return Operation("the network", stream, accesses, run, seconds=NETWORK_SECONDS, check=check)


def _read(place: Any) -> np.ndarray:
    allocation, start, size, dtype, shape = place
    return allocation.data[start : start + size].view(dtype).reshape(shape)


def _sane(feeds: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Sizes that never arrived are garbage: a network would read beyond its canvas, this one clips them."""
    images, sizes = feeds
    return images, np.clip(sizes, 0, images.shape[1:3])
