"""Large images, read in strips."""

from __future__ import annotations

import io
import itertools
import json
import os
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from runtime.detections import RawOutputs
from runtime.detector import Detector
from runtime.images import ImageError, decode
from runtime.images.headers import read_header
from runtime.images.strips import open_strips
from runtime.tiling import TiledDetector, Tiles
from runtime.tta import TtaSettings, with_tta

from ...support.fakes import RedBackend, red_image, write_red_onnx

HEIGHT, WIDTH = 101, 73
PIXELS = cv2.resize(np.random.default_rng(0).integers(0, 256, (20, 15, 3), np.uint8), (WIDTH, HEIGHT))


def saved(mode: str, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(PIXELS).convert(mode).save(buffer, kind, **options)
    return buffer.getvalue()


def in_tiles(side: int = 16) -> bytes:
    """A TIFF in tiles, without compression, which Pillow reads but does not write."""
    down, across = -(-HEIGHT // side), -(-WIDTH // side)
    padded = np.zeros((down * side, across * side, 3), np.uint8)
    padded[:HEIGHT, :WIDTH] = PIXELS
    tiles = padded.reshape(down, side, across, side, 3).swapaxes(1, 2).reshape(down * across, -1)
    count, size = tiles.shape
    long = {256: [WIDTH], 257: [HEIGHT], 259: [1], 262: [2], 277: [3], 284: [1], 322: [side], 323: [side]}
    long |= {258: [8, 8, 8], 324: [8 + i * size for i in range(count)], 325: [size] * count}
    at = 8 + tiles.nbytes
    values_at, entries, values = at + 2 + 12 * len(long) + 4, b"", b""
    for tag, numbers in sorted(long.items()):
        data = struct.pack(f"<{len(numbers)}I", *numbers)
        entries += struct.pack("<HHI", tag, 4, len(numbers))
        entries += data if len(data) == 4 else struct.pack("<I", values_at + len(values))
        values += data if len(data) > 4 else b""
    head = struct.pack("<2sHI", b"II", 42, at)
    return head + tiles.tobytes() + struct.pack("<H", len(long)) + entries + bytes(4) + values


def deep(suffix: str, pixels: np.ndarray) -> bytes:
    """With lower bytes of their own, which are dropped."""
    return cv2.imencode(suffix, pixels.astype(np.uint16) * 256 + (pixels.astype(np.uint16) * 7 & 255))[1].tobytes()


FILES = {
    **{f"png {mode}": saved(mode, "PNG") for mode in ("RGB", "RGBA", "L", "LA", "P", "1")},
    "png 16": deep(".png", PIXELS),
    "png 16 grey": deep(".png", PIXELS[..., 0]),
    "png 16 transparent": deep(".png", np.dstack([PIXELS, PIXELS[..., :1]])),
    **{f"bmp {mode}": saved(mode, "BMP") for mode in ("RGB", "RGBA", "L", "P", "1")},
    **{f"pnm {mode}": saved(mode, "PPM") for mode in ("RGB", "L", "1")},
    **{
        f"tiff {name} {mode}": saved(mode, "TIFF", compression=name, tiffinfo={278: 8})
        for name in ("tiff_lzw", "tiff_adobe_deflate", "packbits")
        for mode in ("RGB", "RGBA", "CMYK", "L", "P", "1")
    },
    "tiff jpeg": saved("RGB", "TIFF", compression="jpeg", tiffinfo={278: 8}),
    "tiff one strip": saved("RGB", "TIFF"),
    "tiff tiles": in_tiles(),
    "tiff 16": deep(".tif", PIXELS),
    "tiff big": saved("RGB", "TIFF", big_tiff=True, compression="tiff_lzw", tiffinfo={278: 8}),
}


def strips_of(data: bytes, rows: int = 20) -> list[np.ndarray]:
    image = open_strips(data, read_header(io.BytesIO(data), "data"), rows * WIDTH)
    assert image is not None
    return list(image.strips())


@pytest.mark.parametrize("name", FILES)
def test_strips_have_the_pixels_of_the_whole_file(name: str) -> None:
    strips = strips_of(FILES[name])
    assert len(strips) > 5
    assert max(map(len, strips)) <= 20
    assert np.array_equal(np.concatenate(strips), decode(FILES[name]))


@pytest.mark.parametrize("name", ["png RGB", "bmp RGB", "pnm RGB", "tiff one strip", "tiff big"])
def test_a_damaged_file_is_refused_in_one_line(name: str) -> None:
    data = FILES[name]
    header = read_header(io.BytesIO(data), "data")
    for end in range(60, len(data) - 30, max(1, len(data) // 40)):
        image = open_strips(data[:end], header, 16 * WIDTH)
        if image is None:
            continue
        with pytest.raises(ImageError) as caught:
            list(image.strips())
        assert "\n" not in str(caught.value)
    if name == "png RGB":
        changed = data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 1]) + data[len(data) // 2 + 1 :]
        with pytest.raises(ImageError, match="damaged"):
            strips_of(changed)


def test_what_cannot_be_read_in_strips() -> None:
    jpeg = saved("RGB", "JPEG")
    assert open_strips(jpeg, read_header(io.BytesIO(jpeg), "x"), 1000) is None
    turned = saved("RGB", "TIFF", tiffinfo={274: 6})
    assert open_strips(turned, read_header(io.BytesIO(turned), "x"), 1000) is None
    with pytest.raises(ImageError, match=r"megapixels, the limit is 0\.001"):
        TiledDetector(Detector(RedBackend()), Tiles(32)).load(jpeg, 1000)


@pytest.mark.parametrize("size_hw", [(512, 640), (301, 423)])
@pytest.mark.parametrize("whole", [True, False])
def test_an_image_in_strips_gives_the_detections_of_the_whole(size_hw: tuple[int, int], whole: bool) -> None:
    image = red_image(*size_hw, None)
    for x, y in ((10, 12), (90, 95), (300, 200), (250, 280)):
        image[y : y + 20, x : x + 25] = (250, 0, 0)
    data = cv2.imencode(".png", image[..., ::-1])[1].tobytes()
    tiled = TiledDetector(Detector(RedBackend()), Tiles(100, whole=whole))
    streamed = tiled.detect_prepared([tiled.prepare(tiled.load(data, 20_000))])[0]
    at_once = tiled(data)
    assert len(at_once) >= 4
    assert np.array_equal(streamed.boxes, at_once.boxes)
    assert np.array_equal(streamed.scores, at_once.scores)


class Recording(RedBackend):
    """Keeps the canvases that it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.canvases: list[np.ndarray] = []

    def infer(self, images: np.ndarray, image_sizes: np.ndarray, **options: Any) -> RawOutputs:
        self.canvases += [image.astype(int) for image in images]
        return super().infer(images, image_sizes, **options)


@pytest.mark.parametrize("scales", [(64,), (192,), (64, 192)])
def test_an_image_in_strips_is_seen_at_several_sizes(scales: tuple[int, ...]) -> None:
    """The whole image too: it is kept as large as the largest size needs."""
    noise = np.random.default_rng(0).integers(0, 256, (301, 423, 3), np.uint8)
    data = cv2.imencode(".png", noise)[1].tobytes()
    views = []
    for most in (20_000, 10**9):
        backend = Recording()
        seen = with_tta(Detector(backend), TtaSettings(scales, tiles=Tiles(200)))
        assert isinstance(seen, TiledDetector)
        seen.detect([seen.load(data, most)])
        views.append(backend.canvases)
    assert len(views[0]) == len(views[1]) == len(scales) * 7
    of_largest = [pair for pair in zip(*views, strict=True) if min(pair[0].shape[:2]) >= max(scales)]
    assert len(of_largest) == 7, "six tiles and the whole image"
    for streamed, at_once in of_largest:
        assert streamed.shape == at_once.shape
        assert np.abs(streamed - at_once).max() <= 1  # OpenCV interpolates in fixed point


MEASURE = """
import json, sys
from runtime.detect import main
main(sys.argv[1:])
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
print("peak_kb", peak.split()[1])
"""


def write_ppm(path: Path, side: int, row_of_spots: bytes, is_spotted: Callable[[int], bool]) -> None:
    """Black but for spots, and sparse: what was never written takes no disk."""
    head = f"P6\n{side} {side}\n255\n".encode()
    with path.open("wb") as file:
        file.write(head)
        for y in filter(is_spotted, range(side)):
            file.seek(len(head) + y * len(row_of_spots))
            file.write(row_of_spots)
        file.truncate(len(head) + side * len(row_of_spots))


def write_png(path: Path, side: int, row_of_spots: bytes, is_spotted: Callable[[int], bool]) -> None:
    """The same, row by row."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    empty, deflate = bytes(len(row_of_spots)), zlib.compressobj(1)
    with path.open("wb") as file:
        file.write(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)))
        for y in range(side):
            data = deflate.compress(b"\0" + (row_of_spots if is_spotted(y) else empty))
            if data:
                file.write(chunk(b"IDAT", data))
        file.write(chunk(b"IDAT", deflate.flush()) + chunk(b"IEND", b""))


WRITERS = {".png": write_png, ".ppm": write_ppm}


@pytest.mark.parametrize("suffix", WRITERS)
def test_the_written_images_are_what_is_meant(tmp_path: Path, suffix: str) -> None:
    row = np.zeros((50, 3), np.uint8)
    row[10:20] = (250, 0, 0)
    WRITERS[suffix](tmp_path / f"a{suffix}", 50, row.tobytes(), lambda y: y in (7, 8))
    expected = np.zeros((50, 50, 3), np.uint8)
    expected[7:9, 10:20] = (250, 0, 0)
    assert np.array_equal(decode(tmp_path / f"a{suffix}"), expected)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak of memory from /proc")
@pytest.mark.parametrize("suffix", WRITERS)
@pytest.mark.parametrize("side", [20_000, 30_000])
def test_hundreds_of_megapixels_within_a_gigabyte(tmp_path: Path, suffix: str, side: int) -> None:
    xs, ys = range(500, side, 4000), range(700, side, 4000)
    row = np.zeros((side, 3), np.uint8)
    for x in xs:
        row[x : x + 80] = (250, 0, 0)
    path = tmp_path / f"large{suffix}"
    WRITERS[suffix](path, side, row.tobytes(), lambda y: y >= 700 and (y - 700) % 4000 < 60)
    model = write_red_onnx(tmp_path / "red.onnx")
    command = [sys.executable, "-c", MEASURE, str(model), str(path), "-o", str(tmp_path / "out"), "--tiles", "1024"]
    started = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ, check=False)
    path.unlink()
    assert done.returncode == 0, done.stderr
    peak_kb = int(done.stdout.split("peak_kb")[1])
    print(f"{side}×{side} {suffix}: {peak_kb / 1e3:.0f} MB, {time.monotonic() - started:.0f} s")
    assert peak_kb < 1_000_000
    found = json.loads((tmp_path / "out" / "detections.json").read_text())["images"][0]
    boxes = np.array([one["box_xyxy"] for one in found["detections"]])
    for x, y in itertools.product(xs, ys):
        assert np.abs(boxes[:, :2] - [x, y]).max(1).min() < 20, (x, y)
