"""The model in front, as Triton's Python backend runs it: images of any size in, detections in their pixels out.

`model.py` of a model repository imports `TritonPythonModel` from here. The server gives `execute` the requests of a
batch. Images are decoded in parallel and laid on canvases; images that share a canvas run together, in the network's
own model in the server, or in a backend of this process. An image that can't be used fails its own request alone.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from ..backends import BackendError
from ..backends.onnx_file import OUTPUT_NAMES
from ..backends.triton import contract
from ..batching import group_by
from ..detections import Detections, RawOutputs
from ..detector import Detector
from ..errors import UserError
from ..files import as_utf8
from ..images.limit import MAX_MEGAPIXELS, max_pixels
from ..images.preprocess import Batch, load
from ..machine.processor import processors
from ..manifest import Manifest, from_json
from ..stopwatch import Stopwatch


class TritonPythonModel:
    """What Triton's Python backend looks for in `model.py`; it calls the three methods."""

    def initialize(self, args: dict[str, str]) -> None:
        """Open the detector that the model's configuration describes. Raises UserError, which the server reports."""
        import triton_python_backend_utils as library

        config = json.loads(args["model_config"])
        parameters = {name: value["string_value"] for name, value in config["parameters"].items()}
        self._library = library
        self._digest = contract.manifest_digest(parameters[contract.MANIFEST])
        self._max_pixels = max_pixels(float(parameters.get(contract.MAX_MEGAPIXELS, MAX_MEGAPIXELS)))
        self._detector = _open_detector(library, parameters, args)
        self._loaders = ThreadPoolExecutor(processors())

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """A response for each request: detections, or what is wrong with its image."""
        given = [self._image_of(request) for request in requests]
        prepared = list(self._loaders.map(self._prepare, given))
        found: list[Detections | UserError | None] = [one if isinstance(one, UserError) else None for one in prepared]
        usable = [(row, one) for row, one in enumerate(prepared) if isinstance(one, Batch)]
        for members in group_by(usable, lambda member: member[1].canvas_hw).values():
            for (row, _), result in zip(members, self._detect([one for _, one in members]), strict=True):
                found[row] = result
        return [self._response(request, result) for request, result in zip(requests, found, strict=True)]

    def finalize(self) -> None:
        """Close what `initialize` opened, when the server unloads the model."""
        self._loaders.shutdown()
        self._detector.close()

    def _image_of(self, request: Any) -> bytes | np.ndarray | UserError:
        """The image of a request, or what is wrong with the request."""
        if request.is_cancelled():
            return UserError("the request was cancelled")
        given = json.loads(request.parameters() or "{}")
        if given.get(contract.OPENED_WITH, self._digest) != self._digest:
            return UserError("the model was replaced by another after the client had opened it; open it again")
        tensors = {name: self._library.get_input_tensor_by_name(request, name) for name in contract.INPUTS}
        arrays = [tensor.as_numpy() for tensor in tensors.values() if tensor is not None]
        if len(arrays) != 1:
            return UserError(
                f"the request has {len(arrays)} images, expected one: either {contract.ENCODED}, the bytes of an "
                f"image file, or {contract.PIXELS}, uint8 [1, height, width, 3] RGB"
            )
        if len(arrays[0]) != 1:
            return UserError(f"the request has a batch of {len(arrays[0])}, expected 1: the server makes the batches")
        image = arrays[0][0]
        return bytes(image[0]) if image.dtype == np.object_ else image

    def _prepare(self, image: bytes | np.ndarray | UserError) -> Batch | UserError:
        if isinstance(image, UserError):
            return image
        try:
            if isinstance(image, bytes):
                loaded = load(image, self._detector.load_preprocess, max_pixels=self._max_pixels)
                return self._detector.prepare(loaded)
            if image.size > 3 * self._max_pixels:
                raise UserError(
                    f"{image.shape[1]}×{image.shape[0]} is {image.size / 3e6:.1f} megapixels, the limit is "
                    f"{self._max_pixels / 1e6:g}; scale the image down"
                )
            return self._detector.prepare(image)
        except UserError as error:
            return error

    def _detect(self, images: Sequence[Batch]) -> Sequence[Detections | UserError]:
        try:
            return self._detector.detect_prepared(images)
        except UserError as error:
            return [error] * len(images)

    def _response(self, request: Any, found: Detections | UserError | None) -> Any:
        library = self._library
        if not isinstance(found, Detections):
            return library.InferenceResponse(error=library.TritonError(str(found)))
        wanted = set(request.requested_output_names())
        outputs = {"boxes": found.boxes, "scores": found.scores, "classes": found.classes}
        if "labels" in wanted:
            names = [as_utf8(self._detector.classes[index]).encode() for index in found.classes]
            outputs["labels"] = np.array(names, dtype=np.object_)
        return library.InferenceResponse(
            [library.Tensor(name, array[None]) for name, array in outputs.items() if name in wanted]
        )


class ServerBackend:
    """A `Backend` that runs the graph as another model of the same server (Triton's business logic scripting)."""

    def __init__(self, library: Any, model: str, manifest: Manifest) -> None:
        self._library, self._model = library, model
        self.manifest = manifest
        self.description = f"{model}, a model of the same server"
        self.concurrency = 1

    def infer(
        self,
        images: np.ndarray,
        image_sizes: np.ndarray,
        *,
        all_candidates: bool = False,
        stopwatch: Stopwatch | None = None,
    ) -> RawOutputs:
        """As `Backend.infer`. Raises BackendError where the other model fails or has other outputs."""
        library = self._library
        tensors = [library.Tensor("images", np.ascontiguousarray(images)), library.Tensor("image_sizes", image_sizes)]
        request = library.InferenceRequest(
            model_name=self._model,
            requested_output_names=list(OUTPUT_NAMES),
            inputs=tensors,
            # Outputs of a model on a GPU lie there otherwise, where as_numpy can't read them.
            preferred_memory=library.PreferredMemory(library.TRITONSERVER_MEMORY_CPU, 0),
        )
        stopwatch = stopwatch or Stopwatch()
        with stopwatch.measure("infer"):
            response = request.exec()
        if response.has_error():
            raise BackendError(f"the model {self._model} failed: {response.error().message()}")
        arrays = {name: library.get_output_tensor_by_name(response, name) for name in OUTPUT_NAMES}
        if absent := [name for name, tensor in arrays.items() if tensor is None]:
            raise BackendError(f"the model {self._model} gave no {', '.join(absent)}; write both models again")
        return RawOutputs(**{name: tensor.as_numpy() for name, tensor in arrays.items()})

    def close(self) -> None:
        """The other model belongs to the server."""


def _open_detector(library: Any, parameters: dict[str, str], args: dict[str, str]) -> Detector:
    if contract.NETWORK in parameters:
        manifest = from_json(parameters[contract.MANIFEST], args["model_name"])
        return Detector(ServerBackend(library, parameters[contract.NETWORK], manifest))
    path = Path(args["model_repository"]) / args["model_version"] / parameters[contract.MODEL_FILE]
    options: dict[str, Any] = {"backend": parameters[contract.BACKEND]}
    if args["model_instance_kind"] == "GPU":
        options["device"] = int(args["model_instance_device_id"])
    return Detector(path, **options)
