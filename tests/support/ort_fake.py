"""A strict stand-in for onnxruntime-gpu on a machine without a GPU.

Sessions compute on the real CPU provider. Everything around them refuses what the real module would refuse or, worse,
take: options that the documentation doesn't name, host memory where device memory belongs, outputs read before they
were waited for, a value that is written while a run reads it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime

CUDA, TENSORRT = "CUDAExecutionProvider", "TensorrtExecutionProvider"
RTX = "NvTensorRTRTXExecutionProvider"

# From ONNX Runtime's documentation of its execution providers, and the plugin's tensorrt_rtx_provider_options.h.
OPTIONS = {
    CUDA: {
        "device_id",
        "user_compute_stream",
        "do_copy_in_default_stream",
        "use_ep_level_unified_stream",
        "gpu_mem_limit",
        "arena_extend_strategy",
        "cudnn_conv_algo_search",
        "cudnn_conv_use_max_workspace",
        "cudnn_conv1d_pad_to_nc1d",
        "enable_cuda_graph",
        "enable_skip_layer_norm_strict_mode",
        "use_tf32",
        "prefer_nhwc",
        "tunable_op_enable",
    },
    TENSORRT: {
        "device_id",
        "user_compute_stream",
        "trt_max_workspace_size",
        "trt_max_partition_iterations",
        "trt_min_subgraph_size",
        "trt_fp16_enable",
        "trt_int8_enable",
        "trt_int8_calibration_table_name",
        "trt_dump_subgraphs",
        "trt_engine_cache_enable",
        "trt_engine_cache_path",
        "trt_engine_cache_prefix",
        "trt_timing_cache_enable",
        "trt_timing_cache_path",
        "trt_build_heuristics_enable",
        "trt_cuda_graph_enable",
        "trt_profile_min_shapes",
        "trt_profile_max_shapes",
        "trt_profile_opt_shapes",
    },
    RTX: {
        "nv_max_workspace_size",
        "nv_profile_min_shapes",
        "nv_profile_max_shapes",
        "nv_profile_opt_shapes",
        "nv_runtime_cache_path",
        "nv_multi_profile_enable",
        "enable_cuda_graph",
    },
}


class FakeOrt:
    """The module. `devices` GPUs; `broken` providers fail to start; `left` operators are left to the CPU.

    Built for `cuda`, it starts no CUDA or TensorRT provider unless it was asked to load the libraries before; of those
    it finds all but `missing`, and prints as the real module does.
    """

    def __init__(
        self,
        available: tuple[str, ...] = (TENSORRT, CUDA, "CPUExecutionProvider"),
        devices: int = 1,
        broken: tuple[str, ...] = (),
        silent: bool = False,
        left: tuple[str, ...] = ("Shape", "Gather"),
        cuda: str = "13.0",
        missing: tuple[str, ...] = (),
    ) -> None:
        self.__version__ = "1.99"
        self.cuda_version = cuda if CUDA in available else ""
        self.missing, self.has_loaded = missing, False
        self.is_full = False  # the GPU's memory
        self.GraphOptimizationLevel = onnxruntime.GraphOptimizationLevel
        self.OrtValue = SimpleNamespace(ortvalue_from_shape_and_type=self._value)
        self._available, self.devices, self._broken, self._silent, self.left = available, devices, broken, silent, left
        self.asked: list[list[tuple[str, dict[str, str]]]] = []  # providers and options of each session
        self.sessions: list[FakeSession] = []
        self.registered: list[str] = []
        self.copied_out = 0  # bytes that left the device
        self.allocated = 0  # device values
        self.most_images: int | None = None  # a larger batch is out of memory
        self.memory: Callable[[int], tuple[int, np.ndarray]] | None = None  # of a driver: address and content, by size

    def SessionOptions(self) -> FakeSessionOptions:
        return FakeSessionOptions()

    def preload_dlls(
        self, cuda: bool = True, cudnn: bool = True, msvc: bool = True, directory: str | None = None
    ) -> None:
        assert self.cuda_version, "a build for CPUs has nothing to load"
        self.has_loaded = True
        for name in self.missing:
            print(f"Failed to load {name}: {name}: cannot open shared object file: No such file or directory")
        if self.missing:
            print("Please follow https://onnxruntime.ai/docs/install/#cuda-and-cudnn to install CUDA.")

    def set_default_logger_severity(self, severity: int) -> None:
        assert severity in range(5)

    def get_available_providers(self) -> list[str]:
        return list(self._available)

    def register_execution_provider_library(self, name: str, path: str) -> None:
        if RTX in self._broken:
            raise RuntimeError("libcuda.so.1: cannot open shared object file")
        assert name not in self.registered, "registered twice"
        self.registered.append(name)

    def get_ep_devices(self) -> list[SimpleNamespace]:
        cpu = SimpleNamespace(ep_name="CPUExecutionProvider", index=0)
        return [cpu] + [SimpleNamespace(ep_name=name, index=i) for name in self.registered for i in range(self.devices)]

    def InferenceSession(
        self,
        path: str | bytes,
        options: FakeSessionOptions,
        providers: Any = None,
        enable_fallback: int = 1,
        disabled_optimizers: Sequence[str] = (),
    ) -> FakeSession:
        assert not disabled_optimizers, "that is for float8 graphs, and the stand-in has none"
        wanted = [(p, {}) if isinstance(p, str) else p for p in providers or []]
        wanted = wanted or options.devices
        for name, chosen in wanted:
            unknown = chosen.keys() - OPTIONS.get(name, set())
            assert not unknown, f"{name} has no option {unknown}"
            assert all(type(value) is str for value in chosen.values())
        self.asked.append(wanted)
        names = [name for name, _ in wanted]
        if self.cuda_version and {CUDA, TENSORRT} & set(names):
            assert self.has_loaded, "a GPU provider is started before its libraries were loaded"
            if self.is_full:
                raise RuntimeError("CUDA failure 2: out of memory ; GPU=0 ; expr=cudaMalloc")
        failed = [name for name in names if name in self._broken]
        if failed and not (self._silent or enable_fallback):
            raise RuntimeError(f"{failed[0]}: CUDA failure 35: driver is insufficient")
        for name, chosen in wanted:
            if int(chosen.get("device_id", "0")) >= self.devices and name != "CPUExecutionProvider":
                raise RuntimeError("CUDA failure 101: invalid device ordinal; GPU=7")
        started = [name for name in names if name not in failed]
        session = FakeSession(self, path, [*dict.fromkeys([*started, "CPUExecutionProvider"])])
        self.sessions.append(session)
        return session

    def _value(self, shape: list[int], kind: type, device_type: str, device: int) -> FakeValue:
        assert device_type == "cuda"
        assert device < self.devices
        self.allocated += 1
        if self.memory is None:
            return FakeValue(self, np.empty(shape, kind))
        address, content = self.memory(int(np.prod(shape)) * np.dtype(kind).itemsize)
        return FakeValue(self, content.view(kind).reshape(shape), address)


class FakeSessionOptions:
    """Takes what our code sets, and keeps it for tests."""

    def __init__(self) -> None:
        self.log_severity_level = 2
        self.intra_op_num_threads = 0
        self.entries: dict[str, str] = {}
        self.devices: list[tuple[str, dict[str, str]]] = []

    def add_session_config_entry(self, key: str, value: str) -> None:
        assert type(value) is str
        self.entries[key] = value

    def add_provider_for_devices(self, devices: list[Any], options: dict[str, str]) -> None:
        self.devices = [(device.ep_name, options) for device in devices]
        self.picked = [device.index for device in devices]


class FakeSession:
    """Computes on the real CPU provider; counts how many runs are under way at once."""

    def __init__(self, module: FakeOrt, path: str | bytes, providers: list[str]) -> None:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        self.module, self.providers = module, providers
        self.real = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self.running = 0
        self.most_running = 0
        self._lock = threading.Lock()

    def get_providers(self) -> list[str]:
        return self.providers

    def get_provider_graph_assignment_info(self) -> list[SimpleNamespace]:
        nodes = [SimpleNamespace(op_type=kind) for kind in self.module.left]
        return [
            SimpleNamespace(ep_name="CPUExecutionProvider", get_nodes=lambda: nodes),
            SimpleNamespace(ep_name=self.providers[0], get_nodes=lambda: [SimpleNamespace(op_type="Conv")]),
        ]

    def get_inputs(self) -> Any:
        return self.real.get_inputs()

    def get_outputs(self) -> Any:
        return self.real.get_outputs()

    def io_binding(self) -> FakeBinding:
        return FakeBinding(self)

    def run(self, names: list[str], feed: dict[str, np.ndarray]) -> list[np.ndarray]:
        if self.module.most_images is not None and len(feed["images"]) > self.module.most_images:
            raise RuntimeError(
                "BFCArena::AllocateRawInternal Failed to allocate memory for requested buffer\nof size 9"
            )
        return self.real.run(names, feed)

    def run_with_iobinding(self, binding: FakeBinding) -> None:
        assert binding.session is self
        with self._lock:
            self.running += 1
            self.most_running = max(self.most_running, self.running)
        try:
            binding.run()
        finally:
            with self._lock:
                self.running -= 1


class FakeValue:
    """Device memory."""

    def __init__(self, module: FakeOrt, content: np.ndarray, address: int = 0) -> None:
        self.module, self.content, self.address = module, content, address
        self.is_read = False  # by a run

    def shape(self) -> list[int]:
        return list(self.content.shape)

    def data_ptr(self) -> int:
        return self.address

    def update_inplace(self, array: np.ndarray) -> None:
        assert not self.is_read, "written while a run reads it"
        assert array.shape == self.content.shape
        assert array.dtype == self.content.dtype
        self.content[:] = array

    def numpy(self) -> np.ndarray:
        self.module.copied_out += self.content.nbytes
        return self.content.copy()


class HostValue:
    """An output in host memory that belongs to the binding."""

    def __init__(self, content: np.ndarray) -> None:
        self.content = content

    def shape(self) -> list[int]:
        return list(self.content.shape)

    def numpy(self) -> np.ndarray:
        return self.content  # a view of the binding's memory


class FakeBinding:
    """An IoBinding: inputs and outputs must be waited for before they are read."""

    def __init__(self, session: FakeSession) -> None:
        self.session = session
        self.inputs: dict[str, FakeValue] = {}
        self.outputs: dict[str, str] = {}
        self.values: list[Any] = []
        self.is_waited_for = True
        self.inputs_are_waited_for = False
        self._memory: dict[str, np.ndarray] = {}

    def bind_ortvalue_input(self, name: str, value: FakeValue) -> None:
        assert isinstance(value, FakeValue)
        self.inputs[name] = value
        self.inputs_are_waited_for = False

    def bind_output(self, name: str, device_type: str, device_id: int = 0) -> None:
        assert device_type in ("cpu", "cuda")
        self.outputs[name] = device_type

    def synchronize_inputs(self) -> None:
        self.inputs_are_waited_for = True

    def run(self) -> None:
        assert self.inputs_are_waited_for, "the run may read inputs that are still on their way"
        assert set(self.outputs) == {output.name for output in self.session.get_outputs()}
        for value in self.inputs.values():
            value.is_read = True
        try:
            found = self.session.run(list(self.outputs), {k: v.content for k, v in self.inputs.items()})
        finally:
            for value in self.inputs.values():
                value.is_read = False
        self.values = []
        for (name, place), array in zip(self.outputs.items(), found, strict=True):
            if place == "cuda":
                self.values.append(FakeValue(self.session.module, array))
                continue
            held = self._memory.get(name)  # as ONNX Runtime may, it writes where the last result lay
            if held is not None and held.shape == array.shape:
                held[:] = array
            else:
                held = self._memory[name] = array.copy()
            self.session.module.copied_out += array.nbytes
            self.values.append(HostValue(held))
        self.is_waited_for = False

    def synchronize_outputs(self) -> None:
        self.is_waited_for = True

    def get_outputs(self) -> list[Any]:
        assert self.is_waited_for, "outputs read before they were waited for"
        return self.values

    def clear_binding_inputs(self) -> None:
        self.inputs.clear()

    def clear_binding_outputs(self) -> None:
        self.outputs.clear()
        self.values = []
