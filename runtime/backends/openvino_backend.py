"""OpenVINO: a backend that runs the same ONNX files on CPUs; int8 and bfloat16 gain most from it."""

from __future__ import annotations

import os
import queue
import threading
from pathlib import Path
from typing import Any

import numpy as np

from ..detections import RawOutputs
from ..manifest import METADATA_KEY, Manifest
from ..stopwatch import Stopwatch
from .contract import BackendError
from .failures import inference_error
from .feeds import check_feed
from .onnx_file import (
    DETECTION_NAMES,
    OUTPUT_NAMES,
    Shape,
    Tensors,
    check_contract,
    check_file,
    first_line,
    manifest_from,
    unreadable,
)
from .options import BackendOptions
from .saturation import check_saturation

_NUMPY_NAMES = {"u8": "uint8", "i32": "int32", "f32": "float32"}
OPENVINO = BackendOptions(backend="openvino")
_ISA_LIMIT = "ONEDNN_MAX_CPU_ISA"
_BELOW_AVX512 = ("SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX2_VNNI_2")
_core: Any = None
_core_lock = threading.Lock()


class OpenVinoBackend:
    """A deployed ONNX file compiled by OpenVINO for the CPU. Raises BackendError, ManifestError.

    Float32 layers compute in float32 unless `options.precision_hint` is "bf16"; OpenVINO's own default is bfloat16
    wherever the CPU supports it. The int8 layers of a QDQ file run in int8 either way.
    """

    def __init__(self, path: str | os.PathLike[str], options: BackendOptions = OPENVINO) -> None:
        self._path = Path(path)
        library = _import_library()
        check_file(self._path)
        core = shared_core()
        _check_precision(core, options)
        try:
            # Core.read_model would also try the readers of six other formats on a file that isn't ONNX.
            reader = library.frontend.FrontEndManager().load_by_framework("onnx")
            model = reader.convert(reader.load(os.fspath(self._path)))
        except Exception as error:  # the library's errors share no narrower base
            raise unreadable(self._path, "OpenVINO", error) from error
        self._manifest = manifest_from(_metadata(model).get(METADATA_KEY), self._path)
        check_saturation(self._path, self._manifest, options.allow_saturation)
        check_contract(self._path, _tensors(model.inputs), _tensors(model.outputs), self._manifest)
        try:
            compiled = core.compile_model(model, "CPU", _properties(options))
        except Exception as error:
            raise BackendError(f"{self._path}: OpenVINO cannot compile it ({first_line(error)})") from error
        self._outputs = {name: compiled.output(name) for name in OUTPUT_NAMES}
        self.concurrency: int = compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS")
        self._requests: queue.SimpleQueue[Any] | None = queue.SimpleQueue()
        for _ in range(self.concurrency):
            self._requests.put(compiled.create_infer_request())
        self.description = (
            f"OpenVINO {library.__version__.split('-')[0]}, {core.get_property('CPU', 'FULL_DEVICE_NAME').strip()}, "
            f"{options.precision_hint}, {compiled.get_property('INFERENCE_NUM_THREADS')} threads"
            + (f", {self.concurrency} batches at once" if self.concurrency > 1 else "")
        )

    @property
    def manifest(self) -> Manifest:
        """The manifest in the file's metadata."""
        return self._manifest

    def infer(
        self,
        images: np.ndarray,
        image_sizes: np.ndarray,
        *,
        all_candidates: bool = False,
        stopwatch: Stopwatch | None = None,
    ) -> RawOutputs:
        """See `Backend`. Raises BackendError for inputs that don't fit the graph, and where the run fails."""
        requests = self._requests
        if requests is None:
            raise BackendError(f"{self._path}: the backend was closed; open it again")
        check_feed(images, image_sizes, self._manifest)
        images, image_sizes = np.ascontiguousarray(images), np.ascontiguousarray(image_sizes)
        request = requests.get()
        stopwatch = stopwatch or Stopwatch()
        try:
            with stopwatch.measure("infer"):
                request.infer({"images": images, "image_sizes": image_sizes}, share_inputs=True, share_outputs=True)
                return self._read(request, all_candidates)
        except Exception as error:
            raise inference_error(
                self._path,
                "OpenVINO",
                error,
                lambda i, s: request.infer({"images": i, "image_sizes": s}),
                images,
                image_sizes,
                self._manifest.inputs.batch_min,
            ) from error
        finally:
            requests.put(request)

    def close(self) -> None:
        """Drop the compiled model; calls that are running finish."""
        self._requests = None

    def _read(self, request: Any, all_candidates: bool) -> RawOutputs:
        """Copies of the outputs, since the request owns their memory; candidates only where they may be needed."""
        outputs = {name: request.get_tensor(port).data for name, port in self._outputs.items()}
        if all_candidates or not outputs["nms_exact"].all():
            return RawOutputs(**{name: array.copy() for name, array in outputs.items()})
        return RawOutputs(
            **{name: outputs[name].copy() for name in DETECTION_NAMES},
            candidate_boxes=np.zeros_like(outputs["candidate_boxes"]),
            candidate_scores=np.zeros_like(outputs["candidate_scores"]),
            candidate_classes=np.full_like(outputs["candidate_classes"], -1),
        )


def shared_core() -> Any:
    """The process's only `openvino.Core`, kept until the process ends. Raises BackendError without the library.

    A core per model can crash the process: the CPU plugin gives its thread another signal stack, and restores the
    previous one when its core is destroyed. Unless cores are destroyed in reverse order of creation, the thread is left
    with a signal stack that no longer exists, and the next handled signal crashes (seen with OpenVINO 2026.4).
    """
    global _core
    library = _import_library()
    with _core_lock:
        if _core is None:
            _core = read_capabilities(library.Core())
        return _core


def read_capabilities(core: Any) -> Any:
    """Make the core read the processor's capabilities, which it does once per process; returns the core.

    ONEDNN_MAX_CPU_ISA limits the oneDNN inside OpenVINO, but not OpenVINO's own kernels. On a processor with AVX-512 a
    lower limit crashes the first inference (seen with OpenVINO 2026.4). Such a limit is meant for other libraries, so
    it is hidden from this one.
    """
    limit = os.environ.get(_ISA_LIMIT, "")
    hidden = limit.upper() in _BELOW_AVX512
    if hidden:
        del os.environ[_ISA_LIMIT]
    try:
        core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    finally:
        if hidden:
            os.environ[_ISA_LIMIT] = limit
    return core


def _import_library() -> Any:
    try:
        import openvino
        import openvino.frontend
    except ImportError as error:
        raise BackendError(
            f"openvino cannot be imported ({first_line(error)}); install it: pip install 'atss-toolkit[openvino]'"
        ) from error
    return openvino


def _check_precision(core: Any, options: BackendOptions) -> None:
    capabilities = core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    if options.precision_hint == "bf16" and "BF16" not in capabilities:
        raise BackendError(
            f"--precision-hint bf16: this CPU has no bfloat16 (it has {', '.join(capabilities)}); leave the hint out"
        )


def _properties(options: BackendOptions) -> dict[str, Any]:
    properties: dict[str, Any] = {
        "INFERENCE_PRECISION_HINT": options.precision_hint,
        "PERFORMANCE_HINT": options.hint.upper(),
    }
    if options.threads:
        properties["INFERENCE_NUM_THREADS"] = options.threads
    return properties


def _metadata(model: Any) -> dict[str, str]:
    """The metadata of the ONNX file, which OpenVINO stores under "framework"."""
    info = model.get_rt_info()
    return {key: value.astype(str) for key, value in info["framework"].items()} if "framework" in info else {}


def _tensors(ports: Any) -> Tensors:
    found: dict[str, tuple[str, Shape]] = {}
    for port in ports:
        kind = port.get_element_type().get_type_name()
        shape = [size.get_length() if size.is_static else None for size in port.get_partial_shape()]
        found |= dict.fromkeys(port.get_names(), (_NUMPY_NAMES.get(kind, kind), shape))
    return found
