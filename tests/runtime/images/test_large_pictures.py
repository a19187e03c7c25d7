"""Images that are much larger than needed: decoded at a fraction of their size, with boxes where they were."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from runtime.coco import CocoDataset, load_coco
from runtime.images import Decoded, ImageError, decode, decode_image
from runtime.images.preprocess import boxes_to_canvas, load, make_batch, plan, reduction, resize
from runtime.manifest import Preprocess, from_json, to_json

from ...support.fakes import MANIFEST

PRE = Preprocess(short_side=60, long_side=100)
PLAIN = dataclasses.replace(PRE, divide_large=False)


def smooth(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Large soft blobs, which a JPEG keeps."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)


def jpeg(image: np.ndarray) -> bytes:
    return cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 98])[1].tobytes()


def averaged(image: np.ndarray, by: int) -> np.ndarray:
    """The mean of each by × by block, in floating point."""
    h, w = image.shape[0] // by, image.shape[1] // by
    return image.reshape(h, by, w, by, 3).mean(axis=(1, 3))


def slow_divisor(image_hw: tuple[int, int], wanted_hw: tuple[int, int]) -> int:
    best = 1
    for by in (2, 4, 8):
        whole = image_hw[0] % by == 0 and image_hw[1] % by == 0
        if whole and image_hw[0] / by >= wanted_hw[0] and image_hw[1] / by >= wanted_hw[1]:
            best = by
    return best


def test_divisors() -> None:
    assert reduction((3000, 4000), (800, 1067)) == 2  # 750 would be too small
    assert reduction((480, 640), (800, 1067)) == 1
    assert reduction((480, 640), (240, 320)) == 2  # just as large as wanted
    assert reduction((479, 640), (100, 134)) == 1  # half a pixel is none
    assert reduction((482, 640), (100, 134)) == 2
    assert reduction((6400, 6400), (100, 100)) == 8  # what decoders have
    rng = np.random.default_rng(0)
    for height, width, h, w in rng.integers(1, 300, (3000, 4)).tolist():
        assert reduction((height, width), (h, w)) == slow_divisor((height, width), (h, w))
        assert reduction((height, width), (h, w)) == reduction((width, height), (w, h))


@pytest.mark.parametrize("by", [1, 2, 4, 8])
def test_a_jpeg_is_decoded_at_a_fraction(by: int) -> None:
    image = smooth(240, 320)
    asked: list[tuple[int, int]] = []
    photo = decode_image(jpeg(image), lambda size_hw: asked.append(size_hw) or by)  # type: ignore[func-returns-value]
    assert asked == [(240, 320)]
    assert photo.size_hw == (240, 320)
    assert photo.pixels.shape == (240 // by, 320 // by, 3)
    assert np.abs(photo.pixels - averaged(image, by)).max() <= 8
    assert np.abs(photo.pixels - averaged(image, by)).mean() < 1


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied_to_the_fraction(orientation: int) -> None:
    pillow = pytest.importorskip("PIL.Image", reason="Pillow writes the orientation; it comes with torchvision")
    exif = pillow.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    pillow.fromarray(smooth(240, 320)).save(buffer, "JPEG", quality=98, exif=exif)
    upright = decode(buffer.getvalue())
    photo = decode_image(buffer.getvalue(), lambda _: 4)
    assert photo.size_hw == upright.shape[:2] == ((320, 240) if orientation > 4 else (240, 320))
    assert np.abs(photo.pixels - averaged(upright, 4)).max() <= 8
    loaded = load(buffer.getvalue(), PRE)
    assert loaded.size_hw == upright.shape[:2]
    assert min(loaded.pixels.shape[:2]) == 60
    np.testing.assert_array_equal(loaded.pixels, photo.pixels)


def test_a_png_is_averaged_when_it_is_resized() -> None:
    image = np.random.default_rng(0).integers(0, 256, (240, 320, 3), dtype=np.uint8)
    png = cv2.imencode(".png", image[..., ::-1])[1].tobytes()
    photo = load(png, PRE)
    assert photo.pixels.shape == (240, 320, 3)
    canvas = make_batch([photo], PRE).images[0, :60, :80]
    assert np.abs(canvas - averaged(image, 4)).max() <= 0.5 + 1e-6
    np.testing.assert_array_equal(make_batch([image], PRE).images[0, :60, :80], canvas)


@pytest.mark.parametrize("size_hw", [(240, 320), (130, 166), (121, 161), (480, 333), (1, 1), (60, 80)])
def test_resizing_into_a_part_of_a_canvas(size_hw: tuple[int, int]) -> None:
    """What is given as the place to write to is written to, and nothing beside it."""
    image = np.random.default_rng(0).integers(0, 256, (*size_hw, 3), dtype=np.uint8)
    for wanted_hw in ((60, 80), (75, 100), (1, 1), size_hw):
        for divide in (False, True):
            canvas = np.full((wanted_hw[0] + 3, wanted_hw[1] + 5, 3), 7, np.uint8)
            part = canvas[: wanted_hw[0], : wanted_hw[1]]
            expected = resize(image, wanted_hw, divide)
            assert np.shares_memory(resize(image, wanted_hw, divide, out=part), canvas)
            np.testing.assert_array_equal(part, expected)
            assert (canvas[wanted_hw[0] :] == 7).all()
            assert (canvas[:, wanted_hw[1] :] == 7).all()


def test_only_what_a_model_was_trained_with() -> None:
    data = jpeg(smooth(480, 640))
    assert load(data, PLAIN).pixels.shape == (480, 640, 3)
    assert load(data, PRE).pixels.shape == (60, 80, 3)
    image = np.random.default_rng(0).integers(0, 256, (240, 320, 3), dtype=np.uint8)
    plain = cv2.resize(image, (80, 60), interpolation=cv2.INTER_LINEAR)
    np.testing.assert_array_equal(make_batch([image], PLAIN).images[0, :60, :80], plain)
    assert (make_batch([image], PRE).images[0, :60, :80] != plain).any()


def test_a_manifest_of_before_means_undivided() -> None:
    fields = json.loads(to_json(MANIFEST))
    assert fields["preprocess"].pop("divide_large") is True
    assert from_json(json.dumps(fields), "old").preprocess.divide_large is False
    assert from_json(to_json(MANIFEST), "new") == MANIFEST


def test_geometry_is_that_of_the_whole_image() -> None:
    """A bright rectangle lies on the canvas where its box, in pixels of the whole image, says."""
    image = np.zeros((1200, 1600, 3), np.uint8)
    image[200:600, 400:1000] = 255
    photo = load(jpeg(image), PRE)
    assert photo.pixels.shape == (150, 200, 3)  # an eighth; wanted are 60 × 80
    batch = make_batch([photo], PRE)
    assert batch.geometries[0] == plan((1200, 1600), PRE)
    mask = batch.images[0, :60, :80, 0] > 127
    ys, xs = np.nonzero(mask)
    box = boxes_to_canvas(np.array([[400, 200, 1000, 600]]), batch.geometries[0])[0]
    np.testing.assert_allclose([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1], box, atol=0.51)


def test_files_and_batches_mix_with_arrays() -> None:
    data = jpeg(smooth(480, 640))
    both = make_batch([load(data, PRE), smooth(30, 40), load(data, PRE)], PRE)
    np.testing.assert_array_equal(both.images[0], both.images[2])
    np.testing.assert_array_equal(both.images[0], make_batch([load(data, PRE)], PRE).images[0])
    assert both.image_sizes.tolist() == [[60, 80]] * 3


@pytest.mark.parametrize("kept", [0.2, 0.6, 0.95])
def test_a_truncated_jpeg_is_refused_at_every_size(kept: float) -> None:
    data = jpeg(smooth(480, 640))
    with pytest.raises(ImageError, match="truncated"):
        load(data[: int(kept * len(data))], PRE)


def test_an_image_larger_than_allowed_is_refused_however_small_it_would_become() -> None:
    with pytest.raises(ImageError, match="megapixels"):
        load(jpeg(smooth(480, 640)), PRE, max_pixels=480 * 640 - 1)


def data_set(folder: Path, size_hw: tuple[int, int], said_hw: tuple[int, int]) -> CocoDataset:
    (folder / "a.jpg").write_bytes(jpeg(smooth(*size_hw)))
    content = {
        "images": [{"id": 1, "file_name": "a.jpg", "height": said_hw[0], "width": said_hw[1]}],
        "annotations": [],
        "categories": [{"id": 1, "name": "thing"}],
    }
    (folder / "a.json").write_text(json.dumps(content))
    return load_coco(folder / "a.json", folder)


def test_the_size_is_checked_before_it_is_divided(tmp_path: Path) -> None:
    """479 rows of which every second is decoded are 240, as are 480."""
    photo = data_set(tmp_path, (480, 640), (480, 640)).load(0, PRE)
    assert (photo.pixels.shape, photo.size_hw) == ((60, 80, 3), (480, 640))
    for said_hw in ((479, 640), (481, 640), (240, 320), (640, 480)):
        with pytest.raises(ImageError, match="the image is 640×480"):
            data_set(tmp_path, (480, 640), said_hw).load(0, PRE)
    with pytest.raises(ImageError, match="the image is 640×479"):
        data_set(tmp_path, (479, 640), (480, 640)).load(0, PRE)
    wide = data_set(tmp_path, (480, 640), (480, 640)).load(0, PRE, wanted_hw=lambda _: (200, 267))
    assert isinstance(wide, Decoded)
    assert wide.pixels.shape == (240, 320, 3)
