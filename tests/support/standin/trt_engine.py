"""The stand-in's Logger, Runtime, ICudaEngine, EngineInspector, and RTX's IRuntimeConfig and IRuntimeCache.

An engine's bytes are JSON: its profiles, the scratch memory that it needs, and what a broken one has wrong.
"""

from __future__ import annotations

import json
import threading
from typing import Any

import numpy as np

from . import network
from .trt_context import Shared

_KERNELS = b"kernels "


def engine_bytes(profiles: list[Any], scratch_per_pixel: int = 4, **wrong: Any) -> bytes:
    """`wrong`: drop (an output), dtype ({name: DataType's name}), host (an input): breaks of the contract; or
    host_code, that of a version-compatible engine; layers, what the inspector says.
    """
    return json.dumps({"profiles": profiles, "scratch_per_pixel": scratch_per_pixel, **wrong}).encode()


class Logger:
    """ILogger; the base class must be initialised."""

    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)

    def __init__(self) -> None:
        self._is_made = True

    def log(self, severity: Any, msg: str) -> None:
        raise NotImplementedError


class Runtime:
    """Deserializes the JSON of `engine_bytes`."""

    _shared: Shared

    def __init__(self, logger: Any) -> None:
        if not getattr(logger, "_is_made", False):
            raise TypeError("ILogger.__init__ was not called")
        self._shared.made(self)
        self._logger = logger
        self._shared.log = logger.log
        self.__dict__["_allowed"] = False

    @property
    def engine_host_code_allowed(self) -> bool:
        return self._allowed

    @engine_host_code_allowed.setter
    def engine_host_code_allowed(self, allowed: bool) -> None:
        self.__dict__["_allowed"] = allowed

    def deserialize_cuda_engine(self, serialized_engine: bytes) -> Any:
        assert isinstance(serialized_engine, bytes)
        self._shared.needs_device("deserialize_cuda_engine")
        try:
            parsed = json.loads(serialized_engine)
        except ValueError:
            self._shared.fail("Error Code 1: Serialization\n(magicTag == kEXPECTED_MAGIC_TAG failed.)")
            return None
        if parsed.get("host_code") and not self._allowed:
            self._shared.fail("Error Code 3: engine_host_code_allowed is not set")
            return None
        if self._allowed and not parsed.get("host_code"):
            raise self._shared.driver.violation("host code is allowed to an engine that needs none")
        return self._shared.module.ICudaEngine(self, parsed)


class Engine:
    """ICudaEngine; makes contexts for one thread at a time."""

    _shared: Shared

    def __init__(self, trt_runtime: Any, parsed: dict[str, Any]) -> None:
        self._shared.made(self)
        self._runtime, self._parsed = trt_runtime, parsed  # as pybind11 keeps it alive
        self._makes = threading.Lock()
        self._names = [name for name in (*network.INPUTS, *network.OUTPUTS) if name != parsed.get("drop")]

    @property
    def num_io_tensors(self) -> int:
        return len(self._names)

    @property
    def num_optimization_profiles(self) -> int:
        return len(self._parsed["profiles"])

    def get_tensor_name(self, index: int) -> str:
        return self._names[index]

    def get_tensor_mode(self, name: str) -> Any:
        modes = self._shared.module.TensorIOMode
        return modes.INPUT if name in network.INPUTS else modes.OUTPUT

    def get_tensor_location(self, name: str) -> Any:
        locations = self._shared.module.TensorLocation
        return locations.HOST if name == self._parsed.get("host") else locations.DEVICE

    def get_tensor_dtype(self, name: str) -> Any:
        names = {np.uint8: "UINT8", np.int32: "INT32", np.float32: "FLOAT"}
        own = names[(network.INPUTS | network.OUTPUTS)[name]]
        return self._shared.module.DataType[self._parsed.get("dtype", {}).get(name, own)]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return tuple(-1 if axis < 1 else size for axis, size in enumerate(network.shapes_of(1, 64, 64)[name]))

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[tuple[int, ...]]:
        profile = self._parsed["profiles"][profile_index]
        return [network.shapes_of(*shape)[name] for shape in profile]

    def create_engine_inspector(self) -> Any:
        inspector = self._shared.module.EngineInspector()
        inspector._layers = self._parsed.get("layers", [])
        return inspector

    def create_runtime_config(self) -> Any:
        return self._shared.module.IRuntimeConfig()

    def create_execution_context(self, strategy: Any = None, runtime_config: Any = None) -> Any:
        self._shared.needs_device("create_execution_context")
        strategies = self._shared.module.ExecutionContextAllocationStrategy
        if isinstance(strategy, self._shared.module.IRuntimeConfig):  # of the other overload
            runtime_config = strategy
        if runtime_config is not None:
            strategy = runtime_config._strategy
        if strategy not in (strategies.USER_MANAGED,):
            raise NotImplementedError(f"the stand-in has no contexts of strategy {strategy}")
        if not self._makes.acquire(blocking=False):
            raise self._shared.driver.violation("an engine makes contexts in two threads at once")
        try:
            with self._shared.driver.call("create_execution_context"):
                pass
        finally:
            self._makes.release()
        return self._shared.module.IExecutionContext(self, runtime_config)


class Inspector:
    """EngineInspector; says what the JSON holds."""

    _shared: Shared

    def get_engine_information(self, format: Any) -> str:
        assert format == self._shared.module.LayerInformationFormat.JSON
        return json.dumps({"Layers": self._layers})  # type: ignore[attr-defined]


class RuntimeConfig:
    """IRuntimeConfig of TensorRT for RTX."""

    _shared: Shared

    def __init__(self) -> None:
        self._shared.made(self)
        self._strategy: Any = None
        self._cache: Any = None
        self.__dict__["_graphs"] = None

    def set_execution_context_allocation_strategy(self, strategy: Any) -> None:
        self._strategy = strategy

    @property
    def cuda_graph_strategy(self) -> Any:
        return self._graphs

    @cuda_graph_strategy.setter
    def cuda_graph_strategy(self, strategy: Any) -> None:
        assert strategy in self._shared.module.CudaGraphStrategy
        self._graphs = strategy

    def create_runtime_cache(self) -> Any:
        return self._shared.module.IRuntimeCache()

    def set_runtime_cache(self, cache: Any) -> bool:
        self._cache = cache
        return True


class RuntimeCache:
    """Holds the shapes whose kernels were compiled."""

    _shared: Shared

    def __init__(self) -> None:
        self._shared.made(self)
        self._compiled: set[str] = set()

    def deserialize(self, blob: bytes) -> bool:
        if not blob.startswith(_KERNELS):
            return False
        self._compiled |= set(json.loads(blob[len(_KERNELS) :]))
        return True

    def serialize(self) -> bytes:
        return _KERNELS + json.dumps(sorted(self._compiled)).encode()
