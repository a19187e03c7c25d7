"""ONNX Runtime: the CPU's backend, and the portable one."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..detections import RawOutputs
from ..manifest import METADATA_KEY, Manifest, from_json
from . import BackendError, Times
from .feeds import check_feed

_IMAGES = ("images", "tensor(uint8)", 4)
_IMAGE_SIZES = ("image_sizes", "tensor(int32)", 2)
_FLOAT, _INT = "tensor(float)", "tensor(int32)"
_OUTPUT_TYPES = {
    "num_detections": (_INT, 2),
    "detection_boxes": (_FLOAT, 3),
    "detection_scores": (_FLOAT, 2),
    "detection_classes": (_INT, 2),
    "nms_exact": (_INT, 2),
    "candidate_boxes": (_FLOAT, 3),
    "candidate_scores": (_FLOAT, 2),
    "candidate_classes": (_INT, 2),
}
_OUTPUT_NAMES = [field.name for field in dataclasses.fields(RawOutputs)]
_EXPORT = "export a checkpoint with: python export/to_onnx.py CHECKPOINT"


class OrtBackend:
    """A deployed ONNX file in an ONNX Runtime session.

    `providers` in order of preference; if ONNX Runtime could not start the first, that is an error unless
    `allow_fallback`. `threads` within an operator, 0 = ONNX Runtime's choice. Raises BackendError, ManifestError.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        providers: Sequence[str] = ("CPUExecutionProvider",),
        threads: int = 0,
        allow_fallback: bool = False,
    ) -> None:
        self._path = Path(path)
        library = _import_library()
        _check_file(self._path)
        _check_available(library, providers)
        self._session = _open_session(library, self._path, providers, threads)
        _check_providers(self._path, self._session.get_providers(), providers, allow_fallback)
        self._manifest = _read_manifest(self._path, self._session)
        if self._manifest.precision == "fp8":
            # ONNX Runtime 1.32 takes a ReLU before a float8 quantization for superfluous and drops it.
            self._session = _open_session(library, self._path, providers, threads, rewrite=False)
        _check_contract(self._path, self._session)
        self._description = (
            f"ONNX Runtime {library.__version__}, {self._session.get_providers()[0]}, "
            f"{f'{threads} threads' if threads else 'default threads'}"
        )

    @property
    def manifest(self) -> Manifest:
        return self._manifest

    @property
    def description(self) -> str:
        return self._description

    @property
    def concurrency(self) -> int:
        return 1  # its own threads fill the processor

    def infer(
        self,
        images: np.ndarray,
        image_sizes: np.ndarray,
        *,
        all_candidates: bool = False,
        times: Times | None = None,
    ) -> RawOutputs:
        """See `Backend`; all candidates are always there. Raises BackendError for a feed that doesn't fit the graph."""
        if self._session is None:
            raise BackendError(f"{self._path}: the backend was closed; open it again")
        check_feed(images, image_sizes, self._manifest)
        feed = {"images": np.ascontiguousarray(images), "image_sizes": np.ascontiguousarray(image_sizes)}
        started = time.perf_counter()
        try:
            outputs = self._session.run(_OUTPUT_NAMES, feed)
        except Exception as error:  # the library's classes share no base but this
            raise BackendError(
                f"{self._path}: ONNX Runtime failed on images {list(images.shape)}: {_first_line(error)}; "
                "if memory ran out, use a smaller batch or canvas"
            ) from error
        if times is not None:
            times["infer"] = times.get("infer", 0.0) + time.perf_counter() - started
        return RawOutputs(*outputs)

    def close(self) -> None:
        self._session = None


def _import_library() -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise BackendError(
            f"onnxruntime cannot be imported ({_first_line(error)}); install it: pip install 'atss-toolkit[cpu]', or "
            "[gpu] on a machine with an NVIDIA GPU (without training: pip install onnxruntime)"
        ) from error
    return onnxruntime


def _check_file(path: Path) -> None:
    try:
        size = path.stat().st_size
    except OSError as error:
        raise BackendError(f"{path}: cannot read the model: {error.strerror or error}; check the path") from error
    if not path.is_file():
        raise BackendError(f"{path}: not a file; expected a deployed model (.onnx)")
    if size == 0:
        raise BackendError(f"{path}: the file is empty; {_EXPORT}")


def _check_available(library: Any, providers: Sequence[str]) -> None:
    available = library.get_available_providers()
    for provider in providers:
        if provider not in available:
            raise BackendError(
                f"this ONNX Runtime has no {provider}, only {', '.join(available)}; for CUDA and TensorRT providers "
                "install onnxruntime-gpu in place of onnxruntime (extra: atss-toolkit[gpu])"
            )


def _open_session(library: Any, path: Path, providers: Sequence[str], threads: int, rewrite: bool = True) -> Any:
    options = library.SessionOptions()
    if not rewrite:
        options.graph_optimization_level = library.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = threads
    options.log_severity_level = 3  # errors only: warnings tell of graph rewrites that nobody can act on
    try:
        return library.InferenceSession(os.fspath(path), options, providers=list(providers))
    except Exception as error:  # the library's classes share no base but this
        raise BackendError(
            f"{path}: ONNX Runtime cannot open it ({_first_line(error)}); if it is cut short or not an ONNX file, "
            f"{_EXPORT}"
        ) from error


def _check_providers(path: Path, started: Sequence[str], wanted: Sequence[str], allow_fallback: bool) -> None:
    """ONNX Runtime only logs that a provider did not start, and runs on the CPU: a benchmark of the wrong thing."""
    missing = [provider for provider in wanted if provider not in started]
    if missing and not allow_fallback:
        raise BackendError(
            f"{path}: ONNX Runtime could not start {', '.join(missing)} and fell back to {started[0]}; mend the driver "
            "and CUDA libraries (its log above says which), or allow the fallback"
        )


def _read_manifest(path: Path, session: Any) -> Manifest:
    text = session.get_modelmeta().custom_metadata_map.get(METADATA_KEY)
    if text is None:
        raise BackendError(f"{path}: an ONNX file, but not one that this toolkit exported (no manifest); {_EXPORT}")
    return from_json(text, str(path))


def _check_contract(path: Path, session: Any) -> None:
    """The graph's inputs and outputs are those that docs and other runtimes rely on, by name, type and rank."""
    inputs = {tensor.name: (tensor.type, len(tensor.shape)) for tensor in session.get_inputs()}
    outputs = {tensor.name: (tensor.type, len(tensor.shape)) for tensor in session.get_outputs()}
    expected_inputs = {name: (kind, rank) for name, kind, rank in (_IMAGES, _IMAGE_SIZES)}
    for what, expected, given in (("input", expected_inputs, inputs), ("output", _OUTPUT_TYPES, outputs)):
        for name, (kind, rank) in expected.items():
            if given.get(name) != (kind, rank):
                found = "missing" if name not in given else f"{given[name][0]} of rank {given[name][1]}"
                raise BackendError(f"{path}: {what} {name!r} is {found}, expected {kind} of rank {rank}; {_EXPORT}")


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
