"""Opens ONNX Runtime sessions: chooses the execution provider and its options, and checks that it really runs.

The providers' names and options are from ONNX Runtime's documentation (execution-providers/CUDA, /TensorRT) and from
NVIDIA's plugin for TensorRT for RTX (onnxruntime-ep-nv-tensorrt-rtx).
"""

from __future__ import annotations

import os
import re
import stat
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...command_names import QUANTIZE, TO_TRT
from ...images.preprocess import plan
from ...manifest import Manifest
from ..contract import BackendError
from ..failures import is_out_of_memory
from ..onnx_file import check_file, first_line, for_onnxruntime, require_manifest, unreadable
from ..options import BackendOptions
from .libraries import preload, preload_tensorrt, why_not_started

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
PROVIDERS = {
    "cpu": CPU,
    "cuda": CUDA,
    "ort-tensorrt": "TensorrtExecutionProvider",
    "ort-rtx": "NvTensorRTRTXExecutionProvider",
}
_GPU_INSTALL = (
    "install onnxruntime-gpu in place of onnxruntime (extra: atss-toolkit[gpu]); the two share a module, so uninstall "
    "the other first"
)
_RTX_INSTALL = "pip install onnxruntime-ep-nv-tensorrt-rtx (beside onnxruntime, not onnxruntime-gpu)"
# A GPU session that leaves one of these operators to the CPU is slow. Arithmetic on shapes belongs on the CPU.
_HEAVY = {"Conv", "FusedConv", "QLinearConv", "DeformConv", "GridSample", "MatMul", "Gemm", "GroupNormalization"}


def import_library() -> Any:
    """Import onnxruntime. Raises BackendError where that fails."""
    try:
        import onnxruntime
    except ImportError as error:
        raise BackendError(
            f"onnxruntime cannot be imported ({first_line(error)}); install it: pip install 'atss-toolkit[cpu]', or "
            "[gpu] on a machine with an NVIDIA GPU (without training: pip install onnxruntime)"
        ) from error
    return onnxruntime


def open_session(library: Any, path: Path, options: BackendOptions, without: Sequence[str] = ()) -> Any:
    """A session of the execution provider that `options.backend` names, without the optimizers named in `without`.

    Raises BackendError, also where another provider started.
    """
    wanted, missing = PROVIDERS[options.backend], None
    session_options = library.SessionOptions()
    # Nobody can act on warnings about graph rewrites. On the CPU an error is an exception, which is told in one line;
    # why another provider doesn't start ONNX Runtime only prints.
    session_options.log_severity_level = 4 if options.backend == "cpu" else 3
    session_options.intra_op_num_threads = options.threads
    # Threads that spin while they wait take cores from the threads that decode the next images.
    session_options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session_options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    if options.backend == "ort-rtx":
        _add_rtx(library, session_options, path, options)
        session = _create(library, path, session_options, None, options, without, missing)
    else:
        check_available(library, wanted)
        missing = load_libraries(library, options.backend)
        providers = providers_for(library, path, options)
        session = _create(library, path, session_options, providers, options, without, missing)
    _check_started(path, library, session, wanted, options.allow_fallback, missing)
    return session


def check_available(library: Any, wanted: str) -> None:
    """Raise BackendError unless this build of ONNX Runtime has the provider."""
    available = library.get_available_providers()
    if wanted not in available:
        raise BackendError(f"this ONNX Runtime has no {wanted}, only {', '.join(available)}; {_GPU_INSTALL}")


def load_libraries(library: Any, backend: str) -> str | None:
    """Load the libraries of a backend's provider. Returns one line with what is missing and how to install it."""
    if backend not in ("cuda", "ort-tensorrt"):
        return None
    missing = preload(library)
    return missing or (preload_tensorrt(library) if backend == "ort-tensorrt" else None)


def on_the_cpu(session: Any) -> Counter[str] | None:
    """How many operators of each kind the session runs on the CPU; None before ONNX Runtime 1.24, which can't tell."""
    if not hasattr(session, "get_provider_graph_assignment_info"):
        return None
    parts = session.get_provider_graph_assignment_info()
    return Counter(node.op_type for part in parts if part.ep_name == CPU for node in part.get_nodes())


def _create(
    library: Any,
    path: Path,
    session_options: Any,
    providers: Any,
    options: BackendOptions,
    without: Sequence[str],
    missing: str | None,
) -> Any:
    try:
        # enable_fallback=1 would replace a provider that fails by the CPU, with only a line on stdout.
        return library.InferenceSession(
            for_onnxruntime(path),
            session_options,
            providers=providers,
            enable_fallback=int(options.allow_fallback),
            disabled_optimizers=list(without),
        )
    except Exception as error:  # the library's errors share no narrower base
        if (lacking := _lacks_kernel(path, PROVIDERS[options.backend], error)) is not None:
            raise lacking from error
        text = str(error).lower()
        if options.backend != "cpu" and ("invalid device" in text or "device_id" in text or "device id" in text):
            raise BackendError(
                f"--device {options.device}: {PROVIDERS[options.backend]} cannot use that GPU ({first_line(error)}); "
                "nvidia-smi -L lists the GPUs, numbered from 0"
            ) from error
        if options.backend != "cpu" and is_out_of_memory(error):
            raise BackendError(
                f"{path}: the memory of GPU {options.device} is full ({first_line(error)}); end what else runs there "
                "(nvidia-smi lists it), or name another GPU with --device"
            ) from error
        if options.backend != "cpu" and ("cuda" in text or "tensorrt" in text or "cudnn" in text):
            raise BackendError(
                f"{path}: {PROVIDERS[options.backend]} did not start ({first_line(error)}); "
                f"{why_not_started(library, missing)}; or choose another --backend"
            ) from error
        raise unreadable(path, "ONNX Runtime", error) from error


def _lacks_kernel(path: Path, provider: str, error: Exception) -> BackendError | None:
    """The error for an operator that the provider has no kernel for, as in a bf16 file; None for other errors."""
    found = re.search(r"implementation for (\w+)|Provider type for (\w+) node.* is not set", str(error))
    return None if found is None else _no_kernel(path, provider, found[1] or found[2])


def _no_kernel(path: Path, provider: str, kind: str) -> BackendError:
    fp16 = f"an fp16 file ({QUANTIZE} MODEL.onnx --precision fp16)"
    instead = fp16 if provider == CUDA else "the float32 file"
    return BackendError(
        f"{path}: {provider} has no kernel for this file's {kind}; a bf16 file runs in TensorRT, as an engine "
        f"({TO_TRT} {path.name}), and in --backend openvino, not in ONNX Runtime: here use {instead}"
    )


def _check_started(
    path: Path, library: Any, session: Any, wanted: str, allow_fallback: bool, missing: str | None
) -> None:
    """Raise BackendError unless the wanted provider started and runs the network.

    ONNX Runtime only logs that a provider didn't start, and runs on the CPU. `missing` is from `load_libraries`.
    """
    started = session.get_providers()
    if wanted not in started and not allow_fallback:
        raise BackendError(
            f"{path}: ONNX Runtime could not start {wanted} and fell back to {started[0]}: "
            f"{why_not_started(library, missing)}; or allow it with --allow-fallback"
        )
    if wanted == CPU or allow_fallback:
        return
    if heavy := {kind: count for kind, count in (on_the_cpu(session) or {}).items() if kind in _HEAVY}:
        named = ", ".join(f"{count} {kind}" for kind, count in sorted(heavy.items()))
        raise BackendError(
            f"{path}: {wanted} leaves {named} to the CPU, which would silently be slow; use another backend, or allow "
            "it with --allow-fallback"
        )


def providers_for(library: Any, path: Path, options: BackendOptions) -> list[Any]:
    """Execution providers with their options, in order of preference, for the file at `path`."""
    if options.backend == "cpu":
        return [CPU]
    cuda = (
        CUDA,
        {
            "device_id": str(options.device),
            # The default doubles the allocation with each new canvas, and keeps it. Memory that convolutions work in
            # has no bound: with cuDNN 9 they don't read cudnn_conv_use_max_workspace (onnxruntime, cuda/nn/conv.cc).
            "arena_extend_strategy": "kSameAsRequested",
            # The default tries every algorithm for each new shape, and there are many canvases.
            "cudnn_conv_algo_search": "HEURISTIC",
            # A float32 graph computes in float32. Lower precision is chosen at export.
            "use_tf32": "0",
        },
    )
    if options.backend == "cuda":
        return [cuda, CPU]
    return [(PROVIDERS["ort-tensorrt"], _tensorrt_options(library, path, options)), cuda, CPU]


def _tensorrt_options(library: Any, path: Path, options: BackendOptions) -> dict[str, str]:
    manifest = require_manifest(check_file(path), path)
    if manifest.precision == "bf16":
        raise _no_kernel(path, PROVIDERS["ort-tensorrt"], "bfloat16")
    if manifest.precision != "fp32":
        raise BackendError(
            f"{path}: a {manifest.precision} graph, whose types ONNX Runtime's TensorRT provider may not keep; build "
            f"an engine ({TO_TRT}), or use --backend cuda or ort-rtx"
        )
    least, best, most = profile_shapes(manifest)
    chosen = {
        "device_id": str(options.device),
        "trt_profile_min_shapes": least,
        "trt_profile_opt_shapes": best,
        "trt_profile_max_shapes": most,
        "trt_fp16_enable": "0",
        "trt_int8_enable": "0",
    }
    if options.engine_cache is not None:
        chosen |= {
            "trt_engine_cache_enable": "1",
            "trt_engine_cache_path": os.fspath(own_folder(options.engine_cache)),
            "trt_engine_cache_prefix": f"{path.stem}_{manifest.graph_sha256[:16]}",
            "trt_timing_cache_enable": "1",
            "trt_timing_cache_path": os.fspath(options.engine_cache),
        }
    return chosen


def profile_shapes(manifest: Manifest) -> tuple[str, str, str]:
    """Smallest, optimal and largest shapes of the inputs, in the spelling of the TensorRT providers.

    Optimal is a batch of up to 8 landscape images with an aspect ratio of 4:3.
    """
    shapes = manifest.inputs
    landscape_hw = plan((480, 640), manifest.preprocess).canvas_hw
    best = (shapes.nearest_batch(8), *shapes.nearest_canvas(landscape_hw))
    least = (shapes.batch_min, *shapes.smallest_canvas)
    most = (shapes.batch_max, *shapes.largest_canvas)
    texts = [f"images:{b}x{h}x{w}x3,image_sizes:{b}x2" for b, h, w in (least, best, most)]
    return texts[0], texts[1], texts[2]


def own_folder(folder: Path) -> Path:
    """Create the folder if it is missing. Raises BackendError where others may write to it: engines are executable."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.stat()
    except OSError as error:
        raise BackendError(f"--engine-cache {folder}: {error.strerror or error}; choose another folder") from error
    foreign = hasattr(os, "getuid") and status.st_uid != os.getuid()
    if foreign or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise BackendError(
            f"--engine-cache {folder}: others may write there, and engines are executable code; use a folder of your "
            f"own (chmod go-w {folder})"
        )
    return folder


def rtx_devices(library: Any) -> Sequence[Any]:
    """The GPUs that NVIDIA's plugin finds; registers the plugin, which is a separate package. Raises BackendError."""
    name = PROVIDERS["ort-rtx"]
    try:
        import onnxruntime_ep_nv_tensorrt_rtx as plugin  # type: ignore[import-not-found]
    except ImportError as error:
        raise BackendError(f"ort-rtx needs NVIDIA's plugin ({first_line(error)}); {_RTX_INSTALL}") from error
    if not hasattr(library, "register_execution_provider_library"):
        raise BackendError(
            f"ONNX Runtime {library.__version__} takes no plugins, ort-rtx needs 1.24 or newer: update it"
        )
    devices = _rtx_devices(library, name)
    if not devices:  # the plugin isn't registered in this process yet
        try:
            library.register_execution_provider_library(name, plugin.get_library_path())
        except Exception as error:  # the library's errors share no narrower base
            raise BackendError(
                f"NVIDIA's plugin for ort-rtx did not start ({first_line(error)}); it needs an RTX GPU and its driver"
            ) from error
        devices = _rtx_devices(library, name)
    return devices


def _add_rtx(library: Any, session_options: Any, path: Path, options: BackendOptions) -> None:
    """Add the GPU of index `options.device` to the session, through NVIDIA's plugin."""
    devices = rtx_devices(library)
    if options.device >= len(devices):
        raise BackendError(
            f"--device {options.device}: {PROVIDERS['ort-rtx']} sees {len(devices)} GPUs, numbered from 0; "
            "nvidia-smi -L lists them"
        )
    least, best, most = profile_shapes(require_manifest(check_file(path), path))
    chosen = {"nv_profile_min_shapes": least, "nv_profile_opt_shapes": best, "nv_profile_max_shapes": most}
    if options.engine_cache is not None:
        chosen["nv_runtime_cache_path"] = os.fspath(own_folder(options.engine_cache))
    session_options.add_provider_for_devices([devices[options.device]], chosen)


def _rtx_devices(library: Any, name: str) -> Sequence[Any]:
    return [device for device in library.get_ep_devices() if device.ep_name == name]
