"""The ONNX Runtime backend, which runs ONNX files on CPUs and NVIDIA GPUs."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...cuda.intake import Intake
from ...detections import RawOutputs
from ...images.device_array import ForeignArray
from ...images.device_canvases import Canvases, DeviceCanvases, finished_canvases
from ...manifest import Manifest
from ...stopwatch import Stopwatch
from ..contract import BackendError
from ..failures import inference_error
from ..feeds import check_feed
from ..onnx_file import OUTPUT_NAMES, Shape, Tensors, check_contract, check_file
from ..options import BackendOptions
from ..saturation import check_saturation
from .binding import BoundRuns
from .session import import_library, on_the_cpu, open_session, read_manifest

Run = Callable[[Any, np.ndarray, bool, Stopwatch], RawOutputs]

_NUMPY_NAMES = {"tensor(uint8)": "uint8", "tensor(int32)": "int32", "tensor(float)": "float32"}
_BOUND = {"cuda", "ort-tensorrt"}  # inputs and outputs can be bound to CUDA memory
CPU_BACKEND = BackendOptions(backend="cpu")


class OrtBackend:
    """A deployed ONNX file in an ONNX Runtime session of the execution provider that `options.backend` names.

    Raises BackendError, also where another provider started; ManifestError.
    """

    def __init__(self, path: str | os.PathLike[str], options: BackendOptions = CPU_BACKEND) -> None:
        self._path = Path(path)
        library = import_library()
        check_file(self._path)
        session = open_session(library, self._path, options)
        self._manifest = read_manifest(self._path, session)
        if self._manifest.precision == "fp8":
            # Up to 1.32 these optimizers drop a ReLU before a float8 quantization, and round float weights of a
            # convolution between two float8 layers to 8 bits with one scale for all channels.
            session = open_session(library, self._path, options, without=("ReluQuantRewrite", "WeightBiasQuantization"))
        provider = session.get_providers()[0]
        # GPU providers add exactly; a session that fell back to the CPU may not.
        check_saturation(self._path, self._manifest, options.allow_saturation or provider != "CPUExecutionProvider")
        check_contract(self._path, _tensors(session.get_inputs()), _tensors(session.get_outputs()), self._manifest)
        self._run: Run | None
        self._bound: BoundRuns | None = None
        if options.backend in _BOUND and provider != "CPUExecutionProvider":
            self._bound = BoundRuns(library, session, "cuda", options.device)
            self._run = self._bound.run
            self._concurrency = 2  # one copies while the other computes
        else:
            self._run = _plain(session)
            self._concurrency = 1  # a single call fills the processor
        self.description = f"ONNX Runtime {library.__version__}, {provider}, {_details(session, options)}"

    @property
    def manifest(self) -> Manifest:
        """The manifest in the file's metadata."""
        return self._manifest

    @property
    def concurrency(self) -> int:
        """2 where calls copy to and from a GPU, else 1."""
        return self._concurrency

    def intake(self) -> Intake | None:
        """See `DeviceBackend`; None on the CPU, and where inputs cannot be bound to CUDA memory.

        Raises CudaError, BackendError.
        """
        bound = self._bound  # first: closing drops it last
        self._open_run()
        return None if bound is None else bound.intake()

    def infer(
        self,
        images: Canvases | ForeignArray,
        image_sizes: np.ndarray,
        *,
        all_candidates: bool = False,
        stopwatch: Stopwatch | None = None,
    ) -> RawOutputs:
        """See `Backend`. Raises BackendError for inputs that don't fit the graph, and where the run fails.

        On a GPU `images` may also be an array uint8 [B, H, W, 3] of another library in its memory.
        """
        run = self._open_run()
        if not isinstance(images, np.ndarray | DeviceCanvases):
            images = self._taken(images)
        check_feed(images, image_sizes, self._manifest)
        image_sizes = np.ascontiguousarray(image_sizes)
        if isinstance(images, np.ndarray):
            images = np.ascontiguousarray(images)
        stopwatch = stopwatch or Stopwatch()
        try:
            return run(images, image_sizes, all_candidates, stopwatch)
        except BackendError:  # of a run before which the backend was closed
            raise
        except Exception as error:  # the library's errors share no narrower base
            raise inference_error(
                self._path,
                "ONNX Runtime",
                error,
                lambda i, s: run(i, s, False, Stopwatch()),
                images,
                image_sizes,
                self._manifest.inputs.batch_min,
            ) from error

    def close(self) -> None:
        """Drop the session; calls that are running finish."""
        self._run, bound = None, self._bound
        if bound is not None:
            bound.close()
        self._bound = None

    def _open_run(self) -> Run:
        run = self._run
        if run is None:
            raise BackendError(f"{self._path}: the backend was closed; open it again")
        return run

    def _taken(self, images: ForeignArray) -> DeviceCanvases:
        intake = self.intake()
        if intake is None:
            raise BackendError(
                f"images is a {type(images).__name__}, and this session takes none from a GPU's memory; give it as "
                "NumPy's array, or use --backend cuda"
            )
        return finished_canvases(intake.take(images))


def _plain(session: Any) -> Run:
    def run(images: np.ndarray, image_sizes: np.ndarray, all_candidates: bool, stopwatch: Stopwatch) -> RawOutputs:
        with stopwatch.measure("infer"):
            outputs = session.run(OUTPUT_NAMES, {"images": images, "image_sizes": image_sizes})
        return RawOutputs(*outputs)

    return run


def _tensors(tensors: Sequence[Any]) -> Tensors:
    def sizes(tensor: Any) -> Shape:
        return [size if isinstance(size, int) else None for size in tensor.shape]

    return {tensor.name: (_NUMPY_NAMES.get(tensor.type, tensor.type), sizes(tensor)) for tensor in tensors}


def _details(session: Any, options: BackendOptions) -> str:
    if session.get_providers()[0] == "CPUExecutionProvider":
        return f"{options.threads} threads" if options.threads else "default threads"
    kinds = on_the_cpu(session)
    left = "" if kinds is None else f", {kinds.total() or 'no'} operators on the CPU"
    return f"GPU {options.device}{left}"
