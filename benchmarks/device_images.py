"""Compares the canvases of images in a GPU's memory with OpenCV's: pixels, and the AP of a model with both.

    python -m benchmarks.device_images model.onnx --annotations test.json --images images/ [--factors 1 1.5]

The kernel's source (runtime/cuda/canvas.cu) runs here, compiled for the host with g++ or clang++. The data set's images
and boxes are enlarged by each factor, so that images are averaged, blended and both.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.compile_kernels import KERNELS
from benchmarks.large_images_ap import enlarged
from runtime.coco import load_coco
from runtime.coco.evaluation import score_detector
from runtime.detections import Detections
from runtime.detector import Detector
from runtime.errors import UserError
from runtime.files import atomic_write
from runtime.images import Decoded
from runtime.images.device_array import DeviceImage
from runtime.images.preprocess import Batch, as_decoded, place_batch
from runtime.manifest import Manifest, Preprocess
from runtime.stopwatch import Stopwatch

Lay = Callable[[np.ndarray, Preprocess, tuple[int, int]], np.ndarray]  # image, preprocessing, canvas → canvas

# Runs the kernel for every place of a grid of one-thread blocks.
_HOST = """
#include <cmath>
#define __device__
#define __global__
struct Place {{ int x, y; }};
static thread_local Place blockIdx, threadIdx = {{0, 0}};
static const Place blockDim = {{1, 1}};
#include "{source}"
extern "C" void run(const unsigned char *pixels, long long row, long long pixel, long long channel, const int *numbers,
                    unsigned char *canvas) {{
    // One column and row more than the canvas has, as a grid of larger blocks does.
    for (blockIdx.y = 0; blockIdx.y <= numbers[3]; ++blockIdx.y)
        for (blockIdx.x = 0; blockIdx.x <= numbers[4]; ++blockIdx.x)
            lay_on_canvas(pixels, row, pixel, channel, numbers[0], numbers[1], numbers[2], canvas, numbers[3],
                          numbers[4], numbers[5], numbers[6], numbers[7], numbers[8]);
}}
"""


class NoHostCompiler(UserError):
    """Neither g++ nor clang++ is installed."""


def kernel_on_the_host(folder: Path) -> Lay:
    """The kernel, compiled into `folder`; any number of threads may run it. Raises NoHostCompiler."""
    compiler = shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        raise NoHostCompiler("running the kernel on the host needs a C++ compiler: install g++ or clang++")
    (folder / "host.cpp").write_text(_HOST.format(source=KERNELS / "canvas.cu"), encoding="utf-8")
    options = ["-O1", "-ffp-contract=off", "-shared", "-fPIC", "-Wall", "-Werror"]
    subprocess.run([compiler, *options, "host.cpp", "-o", "host.so"], cwd=folder, check=True)
    run = ctypes.CDLL(str(folder / "host.so")).run

    def lay(image: np.ndarray, pre: Preprocess, canvas_hw: tuple[int, int]) -> np.ndarray:
        size_hw = (image.shape[0], image.shape[1])
        placed = place_batch([DeviceImage(0, (0, 0, 0), size_hw, 0, None, None)], pre, canvas_hw)
        (row,) = placed.images.rows
        assert not isinstance(row, np.ndarray)
        height, width = size_hw[0] // row.by, size_hw[1] // row.by
        halved = (height, width) == (2 * row.resized_hw[0], 2 * row.resized_hw[1])
        pad = sum(value << 8 * index for index, value in enumerate(pre.pad_value))
        numbers = np.array([row.by, height, width, *canvas_hw, *row.resized_hw, halved, pad], np.int32)
        canvas = np.full((*canvas_hw, 3), 77, np.uint8)
        strides = [ctypes.c_longlong(stride) for stride in image.strides]
        pointers = [ctypes.c_void_p(array.ctypes.data) for array in (image, numbers, canvas)]
        run(pointers[0], *strides, *pointers[1:])
        return canvas

    return lay


class WholeDetector:
    """A detector that gets all pixels of an image, as a decoder on the GPU gives them, and OpenCV's canvases."""

    load_preprocess = None

    def __init__(self, detector: Detector) -> None:
        self._detector = detector

    def __getattr__(self, name: str) -> Any:
        return getattr(self._detector, name)


class KernelDetector:
    """A detector whose canvases the kernel makes; it counts how they differ from OpenCV's."""

    load_preprocess = None  # a decoder on the GPU gives all pixels
    concurrency = 1

    def __init__(self, detector: Detector, lay: Lay) -> None:
        self._detector, self._lay = detector, lay
        self._lock = threading.Lock()  # guards the counts
        self.values, self.different, self.largest = 0, 0, 0

    @property
    def manifest(self) -> Manifest:
        """See `DetectorProtocol`."""
        return self._detector.manifest

    def canvas_hw(self, image_hw: tuple[int, int]) -> tuple[int, int]:
        """See `DetectorProtocol`."""
        return self._detector.canvas_hw(image_hw)

    def prepare(self, image: np.ndarray | Decoded) -> tuple[np.ndarray, Batch]:
        """The image's pixels, and its batch by OpenCV."""
        pixels = as_decoded(image).pixels
        return pixels, self._detector.prepare(pixels)

    def detect_prepared(
        self, images: Sequence[tuple[np.ndarray, Batch]], stopwatch: Stopwatch | None = None
    ) -> list[Detections]:
        """See `DetectorProtocol`."""
        made = []
        for pixels, batch in images:
            canvas = self._lay(pixels, self.manifest.preprocess, batch.canvas_hw)
            difference = np.abs(canvas.astype(np.int16) - batch.images[0])
            with self._lock:
                self.values += difference.size
                self.different += int(np.count_nonzero(difference))
                self.largest = max(self.largest, int(difference.max()))
            made.append(Batch(canvas[None], batch.image_sizes, batch.geometries))
        return self._detector.detect_prepared(made, stopwatch)


def main() -> int:
    """Compare pixels and AP at every factor."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--annotations", type=Path, required=True)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--factors", type=float, nargs="+", default=[1, 1.5])
    parser.add_argument("--backend", default="cpu")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows = []
    for factor in options.factors:
        with tempfile.TemporaryDirectory() as temporary, Detector(options.model, backend=options.backend) as detector:
            folder = Path(temporary)
            dataset = load_coco(enlarged(options.annotations, options.images, factor, folder), folder)
            kernel = KernelDetector(detector, kernel_on_the_host(folder))
            ap = {
                name: round(100 * score_detector(one, dataset).metrics.values["AP"], 3)
                for name, one in (("opencv", WholeDetector(detector)), ("kernel", kernel))
            }
            row = {
                "factor": factor,
                "images": "×".join(map(str, dataset.size_hw(0)[::-1])),
                "values": kernel.values,
                "different": kernel.different,
                "largest_difference": kernel.largest,
                "AP": ap,
            }
            rows.append(row)
            print("; ".join(f"{key} {value}" for key, value in row.items()), flush=True)
    if options.json is not None:
        atomic_write(options.json, json.dumps({"model": options.model.name, "results": rows}, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
