"""Compares our preprocessing, JPEG bytes to canvas, with torchvision's (PIL decode, `v2.Resize`, pad) on one core.

    python benchmarks/preprocess_benchmark.py [--images DIR] [--json preprocess.json]

The sides alternate on the same bytes in one process with one thread; figures are medians over rounds. torchvision is
measured twice: resizing the PIL image, and resizing the uint8 tensor made from it, which is faster. The images are the
photographs in DIR, enlarged or reduced to each size and saved as JPEG of quality 90; without DIR, blobs with noise. The
script also checks that our pixels are the training's, bit for bit. Decoding alone, which finds damage, is measured
beside OpenCV's, which doesn't look for it.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import PIL
import PIL.Image
import torch
import torchvision
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from runtime.coco import load_coco
from runtime.files import atomic_write
from runtime.images import decode
from runtime.images.preprocess import load, make_batch
from runtime.manifest import Preprocess
from train.config import Augment
from train.data.loader import TrainingStream

PRE = Preprocess(short_side=800, long_side=1333)
SIZES = ((640, 480), (1280, 960), (1920, 1080), (4000, 3000))  # width, height
TARGETS = {(640, 480): 2.0, (4000, 3000): 3.0}
IMAGES = 8


def ours(data: bytes) -> np.ndarray:
    """The toolkit's canvas of a JPEG, uint8 [1, H, W, 3]."""
    return make_batch([load(data, PRE)], PRE).images


def torchvision_of_pil(data: bytes, resize: v2.Resize) -> torch.Tensor:
    """torchvision's canvas, resized as a PIL image, uint8 [3, H, W]."""
    image = PIL.Image.open(io.BytesIO(data)).convert("RGB")
    return pad(functional.pil_to_tensor(resize(image)))


def torchvision_of_tensor(data: bytes, resize: v2.Resize) -> torch.Tensor:
    """torchvision's canvas, resized as a uint8 tensor, uint8 [3, H, W]."""
    image = PIL.Image.open(io.BytesIO(data)).convert("RGB")
    return pad(resize(functional.pil_to_tensor(image)))


def pad(image: torch.Tensor) -> torch.Tensor:
    """The image [3, h, w] padded at the right and at the bottom to multiples of the size divisor."""
    height, width = image.shape[1:]
    return functional.pad(image, [0, 0, -width % PRE.size_divisor, -height % PRE.size_divisor])


def photos(folder: Path | None) -> list[np.ndarray]:
    """Up to IMAGES photographs, spread over the folder, or blobs with noise."""
    if folder is not None:
        paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
        return [decode(path) for path in paths[:: max(1, len(paths) // IMAGES)][:IMAGES]]
    rng = np.random.default_rng(0)
    coarse = [rng.integers(0, 256, (12, 16, 3), dtype=np.uint8) for _ in range(IMAGES)]
    return [cv2.resize(c, (640, 480), interpolation=cv2.INTER_CUBIC) for c in coarse]


def as_jpeg(image: np.ndarray, size: tuple[int, int], rng: np.random.Generator) -> bytes:
    """The image at another size as JPEG bytes, with a sensor's grain added, which an enlarged image lacks."""
    resized = cv2.resize(image, size, interpolation=cv2.INTER_CUBIC)
    grained = np.clip(resized + rng.normal(0, 4, resized.shape).astype(np.float32), 0, 255).astype(np.uint8)
    return cv2.imencode(".jpg", grained[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 90])[1].tobytes()


def differing_pixels(files: list[bytes], size: tuple[int, int]) -> int:
    """The number of pixel values that differ between our canvases and the training's for the same files."""
    with tempfile.TemporaryDirectory() as folder:
        for number, data in enumerate(files):
            (Path(folder) / f"{number}.jpg").write_bytes(data)
        images = [
            {"id": number, "file_name": f"{number}.jpg", "width": size[0], "height": size[1]}
            for number in range(len(files))
        ]
        box = {"id": 1, "image_id": 0, "category_id": 1, "bbox": [0, 0, 9, 9], "area": 81}  # training wants an object
        content = {"images": images, "annotations": [box], "categories": [{"id": 1, "name": "thing"}]}
        (Path(folder) / "a.json").write_text(json.dumps(content))
        dataset = load_coco(Path(folder) / "a.json", folder)
        unchanged = Augment(horizontal_flip=0, short_side_min=PRE.short_side, short_side_max=PRE.short_side)
        stream = TrainingStream(dataset, unchanged, PRE, True, 0)
        differing = 0
        for n in range(len(files)):
            item = stream[n]
            batch = make_batch([load(files[item.image_id], PRE)], PRE)
            height, width = batch.image_sizes[0]
            differing += int((item.sample.image != batch.images[0, :height, :width]).sum())
    return differing


def compare(size: tuple[int, int], images: list[np.ndarray], rounds: int) -> dict[str, object]:
    """Time the sides on images of one size, alternating; returns medians and ratios."""
    rng = np.random.default_rng(0)
    files = [as_jpeg(image, size, rng) for image in images]
    resize = v2.Resize(PRE.short_side, max_size=PRE.long_side, antialias=True)
    sides: dict[str, Callable[[bytes], object]] = {
        "ours": ours,
        "torchvision, PIL image": lambda data: torchvision_of_pil(data, resize),
        "torchvision, uint8 tensor": lambda data: torchvision_of_tensor(data, resize),
    }
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for round_number in range(rounds + 1):
        spent = dict.fromkeys(sides, 0.0)
        for data in files:
            for name, side in sides.items():
                started = time.perf_counter()
                side(data)
                spent[name] += time.perf_counter() - started
        if round_number:  # the first warms up
            for name in sides:
                seconds[name].append(spent[name] / len(files))
    return {
        "size": f"{size[0]}×{size[1]}",
        "kilobytes": round(statistics.mean(map(len, files)) / 1000),
        "median_ms": {name: 1000 * statistics.median(values) for name, values in seconds.items()},
        "times_as_many_images_per_second": {
            name: statistics.median(theirs / ours for theirs, ours in zip(seconds[name], seconds["ours"], strict=True))
            for name in sides
            if name != "ours"
        },
        "wanted": TARGETS.get(size),
        "pixels_unlike_training": differing_pixels(files, size),
    }


def opencv_unchecked(data: bytes) -> np.ndarray:
    """All pixels of a JPEG as OpenCV gives them, damaged or not, uint8 [h, w, 3] RGB."""
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    return cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB, dst=pixels)


def compare_decoding(size: tuple[int, int], images: list[np.ndarray], rounds: int) -> dict[str, object]:
    """Processor time of our decoding as a multiple of OpenCV's without checks: the median of alternating rounds."""
    rng = np.random.default_rng(0)
    files = [as_jpeg(image, size, rng) for image in images]
    ratios: list[float] = []
    for round_number in range(rounds + 1):
        spent = {decode: 0.0, opencv_unchecked: 0.0}
        for data in files:
            for side in spent:
                started = time.process_time()
                side(data)
                spent[side] += time.process_time() - started
        if round_number:  # the first warms up
            ratios.append(spent[decode] / spent[opencv_unchecked])
    differing = sum(int((decode(data) != opencv_unchecked(data)).sum()) for data in files)
    return {"times_opencvs_time": statistics.median(ratios), "pixels_unlike_opencv": differing}


def main() -> int:
    """Compare the sides at every size, and check that our pixels are the training's."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=Path, help="folder of photographs")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    images = photos(options.images)
    conditions = {
        "canvas": f"shorter side {PRE.short_side}, longer at most {PRE.long_side}, multiples of {PRE.size_divisor}",
        "images": f"{len(images)} {'photographs' if options.images else 'synthetic'}, JPEG quality 90",
        "rounds": options.rounds,
        "opencv": cv2.__version__,
        "torchvision": torchvision.__version__,
        "pillow": PIL.__version__,
        "machine": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
    }
    print(", ".join(f"{name} {value}" for name, value in conditions.items()))
    results = [
        {**compare(size, images, options.rounds), "decoding": compare_decoding(size, images, options.rounds)}
        for size in SIZES
    ]
    for result in results:
        medians, ratios = result["median_ms"], result["times_as_many_images_per_second"]
        wanted = f", wanted {result['wanted']:g} ×" if result["wanted"] else ""
        print(f"\n{result['size']} ({result['kilobytes']} kB){wanted}")
        for name, value in medians.items():
            ratio = f"   ours is {ratios[name]:.2f} × as fast" if name in ratios else ""
            print(f"  {name:<28}{value:8.2f} ms{1000 / value:9.1f} images/s{ratio}")
        print(f"  pixels unlike training's: {result['pixels_unlike_training']}")
        decoding = result["decoding"]
        print(
            f"  decoding all pixels, with checks: {decoding['times_opencvs_time']:.2f} × OpenCV's time without; "
            f"pixels unlike OpenCV's: {decoding['pixels_unlike_opencv']}"
        )
    if options.json is not None:
        atomic_write(options.json, json.dumps({"conditions": conditions, "results": results}, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
