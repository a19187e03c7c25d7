"""The served model: names, types and shapes of its tensors, and the parameters of its configuration.

A request has one image and gets that image's detections; the server puts requests together into batches. N detections.
"""

from __future__ import annotations

import hashlib
from typing import NamedTuple


class TensorSpec(NamedTuple):
    """A tensor of a model in the server, without the batch."""

    data_type: str  # Triton's name, as in a configuration: TYPE_UINT8, …
    dims: tuple[int, ...]  # −1: any


# A request gives one of the two.
ENCODED, PIXELS = "encoded", "pixels"
INPUTS = {
    ENCODED: TensorSpec("TYPE_STRING", (1,)),  # the bytes of an image file
    PIXELS: TensorSpec("TYPE_UINT8", (-1, -1, 3)),  # height, width, RGB
}
OUTPUTS = {
    "boxes": TensorSpec("TYPE_FP32", (-1, 4)),  # xyxy in pixels of the image, best score first
    "scores": TensorSpec("TYPE_FP32", (-1,)),
    "classes": TensorSpec("TYPE_INT32", (-1,)),  # 0-based
    "labels": TensorSpec("TYPE_STRING", (-1,)),  # the names of the classes
}

# Parameters of the configuration.
MANIFEST = "manifest"  # JSON of the manifest
NETWORK = "network"  # the model in the server that runs the graph; absent where the model runs a file of its own
MODEL_FILE = "model_file"  # that file's name, in the version's folder
MAX_MEGAPIXELS = "max_megapixels"  # larger images are refused; absent: the default of the toolkit
BACKEND = "backend"  # and the backend that runs it, a name of BACKENDS or "auto"

# Parameter of a request: the digest of the manifest that the client was opened with. Other clients leave it out.
OPENED_WITH = "manifest_sha256"

INPUT_NAME = {"TYPE_STRING": "BYTES", "TYPE_UINT8": "UINT8"}  # a type as requests name it
EXTRA = "atss-toolkit[triton]"


def manifest_digest(text: str) -> str:
    """What stands for a manifest in requests. `text` is the configuration's parameter."""
    return hashlib.sha256(text.encode()).hexdigest()
