"""Images cut into tiles, and the detections of the tiles merged."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import pytest

from runtime.coco.command import main as evaluate
from runtime.detect import main as detect
from runtime.detections import Detections
from runtime.detector import Detector
from runtime.errors import UserError
from runtime.images.crop import crop
from runtime.images.device_array import DeviceImage
from runtime.manifest import Thresholds
from runtime.nms import overlap_matrix
from runtime.tiling import TiledDetector, Tiles
from runtime.tiling.grid import Window, tile_rows, whole_window
from runtime.tiling.merge import merge_tiles, seen_better
from runtime.tiling.settings import Merge
from runtime.tta import TtaSettings, with_tta

from ...support.fakes import RedBackend, red_image, write_red_onnx


@pytest.mark.parametrize("image_hw", [(1, 1), (40, 300), (100, 100), (101, 99), (640, 480), (333, 1000)])
@pytest.mark.parametrize(("side", "overlap"), [(32, 0.0), (100, 0.2), (64, 0.9), (640, 0.5)])
def test_tiles_cover_the_image_and_overlap(image_hw: tuple[int, int], side: int, overlap: float) -> None:
    rows = tile_rows(image_hw, side, overlap)
    seen = np.zeros(image_hw, int)
    for window in (window for row in rows for window in row):
        assert window.size_hw == (min(side, image_hw[0]), min(side, image_hw[1])), "none is thin"
        seen[window.y1 : window.y2, window.x1 : window.x2] += 1
    assert seen.min() == 1
    starts = [window.x1 for window in rows[0]]
    assert all(0 < b - a <= side - round(side * overlap) for a, b in pairwise(starts))
    assert [row[0].y1 for row in rows] == sorted({row[0].y1 for row in rows})


def found(*boxes: tuple[float, ...], scores: tuple[float, ...] = (), classes: tuple[int, ...] = ()) -> Detections:
    return Detections(
        np.array(boxes, np.float32).reshape(-1, 4),
        np.array(scores or [0.9] * len(boxes), np.float32),
        np.array(classes or [0] * len(boxes), np.int32),
    )


def test_nothing_merges_to_nothing() -> None:
    assert len(merge_tiles([], (10, 10), Thresholds(), Tiles(32))) == 0
    assert len(merge_tiles([(Window(0, 0, 10, 10), found())], (10, 10), Thresholds(), Tiles(32))) == 0


def test_a_box_cut_by_a_border_gives_way_to_the_whole_one() -> None:
    left, right = Window(0, 0, 100, 100), Window(80, 0, 180, 100)
    parts = [(left, found((85, 20, 100, 40), scores=(0.95,))), (right, found((5, 20, 35, 40), scores=(0.6,)))]
    for merge in ("nms", "ios"):
        merged = merge_tiles(parts, (100, 180), Thresholds(), Tiles(100, merge=merge))  # type: ignore[arg-type]
        assert merged.boxes.tolist() == [[85, 20, 115, 40]]
    alone = merge_tiles([(Window(0, 0, 100, 100), parts[0][1])], (100, 100), Thresholds(), Tiles(100))
    assert len(alone) == 1, "the border of the image cuts nothing"


def test_an_object_longer_than_the_overlap_stays() -> None:
    windows = [Window(0, 0, 100, 100), Window(80, 0, 180, 100), whole_window((100, 180))]
    # Longer than the overlap; at its very border; within it; not cut at all.
    boxes = np.array([[50, 20, 100, 40], [80.5, 20, 100, 40], [85, 20, 100, 40], [85, 20, 95, 40]], np.float32)
    assert seen_better(boxes, windows[0], windows, (100, 180)).tolist() == [False, False, True, False]


@pytest.mark.parametrize("merge", ["nms", "ios"])
def test_only_tiles_beside_each_other_matter(merge: Merge) -> None:
    image_hw, rng = (300, 420), np.random.default_rng(0)
    windows = [window for row in tile_rows(image_hw, 64, 0.3) for window in row] + [whole_window(image_hw)]
    parts = []
    for window in windows:
        height, width = window.size_hw
        corner = rng.uniform(0, (width - 4, height - 4), (30, 2))
        far = np.minimum(corner + rng.uniform(2, 30, (30, 2)), (width, height))
        boxes = np.concatenate([corner, far], axis=1).astype(np.float32)
        parts.append((window, Detections(boxes, rng.random(30).astype(np.float32), rng.integers(0, 2, 30))))
    alone = [(whole_window(image_hw), found())]
    for window, part in parts:
        boxes = part.boxes + np.array([window.x1, window.y1, window.x1, window.y1], np.float32)
        kept = ~seen_better(boxes, window, windows, image_hw)  # of all windows
        assert kept.sum() > 0
        alone.append((whole_window(image_hw), Detections(boxes[kept], part.scores[kept], part.classes[kept])))
    tiles = Tiles(64, 0.3, merge)
    merged, expected = (merge_tiles(each, image_hw, Thresholds(), tiles) for each in (parts, alone))
    assert 50 < len(expected) < 30 * len(windows)
    assert merged.boxes.tolist() == expected.boxes.tolist()
    assert merged.scores.tolist() == expected.scores.tolist()


@pytest.mark.parametrize(("merge", "kept"), [("nms", 2), ("ios", 1)])
def test_a_part_within_a_box_is_the_same_object_by_the_smaller_area(merge: str, kept: int) -> None:
    part = found((0, 0, 100, 100), (10, 10, 30, 30), (10, 10, 30, 30), classes=(0, 0, 1))
    merged = merge_tiles([(Window(0, 0, 200, 200), part)], (200, 200), Thresholds(), Tiles(200, merge=merge))  # type: ignore[arg-type]
    assert (merged.classes == 0).sum() == kept
    assert (merged.classes == 1).sum() == 1


def test_the_smaller_area_divides() -> None:
    a, b = np.array([[0, 0, 10, 10], [5, 5, 5, 5]], np.float32), np.array([[5, 0, 9, 10], [20, 20, 30, 30]], np.float32)
    assert overlap_matrix(a, b, "ios").tolist() == [[1, 0], [0, 0]]
    assert overlap_matrix(a, b, "iou")[0, 0] == pytest.approx(0.4)


def same(a: Detections, b: Detections) -> bool:
    return all(np.array_equal(getattr(a, name), getattr(b, name)) for name in ("boxes", "scores", "classes"))


@pytest.mark.parametrize("image_hw", [(60, 80), (100, 100), (33, 99), (1, 1)])
def test_one_tile_that_covers_the_image_is_plain_detection(image_hw: tuple[int, int], tmp_path: Path) -> None:
    detector = Detector(RedBackend())
    image = red_image(*image_hw, (3, 5, 50, 31))
    assert same(TiledDetector(detector, Tiles(100)).detect([image])[0], detector.detect([image])[0])
    path = tmp_path / "a.jpg"
    cv2.imwrite(str(path), image[..., ::-1])
    assert same(TiledDetector(detector, Tiles(100))(path), detector(path))
    assert TiledDetector(detector, Tiles(100)).detect([]) == []


def scene(height: int = 300, width: int = 420) -> tuple[np.ndarray, list[list[int]]]:
    image = red_image(height, width, None)
    boxes = [[10, 12, 30, 28], [95, 95, 112, 110], [300, 200, 330, 222], [400, 280, 420, 300]]
    for x1, y1, x2, y2 in boxes:
        image[y1:y2, x1:x2] = (250, 0, 0)
    return image, boxes


def test_small_objects_are_found_where_they_are() -> None:
    detector = Detector(RedBackend())
    image, boxes = scene()
    merged = TiledDetector(detector, Tiles(64, 0.5, whole=False)).detect([image])[0]
    for box in boxes:
        assert np.abs(merged.boxes[merged.classes == 0] - np.array(box)).max(1).min() < 2, box
    assert detector.detect([image])[0].boxes.shape[0] < len(merged)


def test_a_batch_gives_what_its_images_give_alone_and_tiles_fill_batches() -> None:
    backend = RedBackend()
    detector = Detector(backend)
    images = [scene()[0], red_image(), scene(500, 200)[0]]
    tiled = TiledDetector(detector, Tiles(100, batch=8))
    together = tiled.detect(images)
    assert max(shape[0] for shape in backend.batches) == 8
    assert all(same(one, tiled.detect([image])[0]) for one, image in zip(together, images, strict=True))
    assert all(len(one) for one in together)


def test_tiles_are_seen_mirrored_and_at_several_sizes() -> None:
    detector = Detector(RedBackend())
    seen = with_tta(detector, TtaSettings((64, 96), flip=True, tiles=Tiles(64, 0.5, whole=False)))
    image, boxes = scene()
    merged = seen.detect_prepared([seen.prepare(image)])[0]
    assert all(np.abs(merged.boxes - np.array(box)).max(1).min() < 2 for box in boxes)


def test_most_detections_are_kept_by_score() -> None:
    detector = Detector(RedBackend())
    image, _ = scene()
    assert len(TiledDetector(detector, Tiles(64, most=2)).detect([image])[0]) == 2


@pytest.mark.parametrize("tiles", [Tiles(16), Tiles(64, overlap=0.95), Tiles(64, overlap=float("nan"))])
def test_tiles_that_make_no_sense(tiles: Tiles) -> None:
    with pytest.raises(UserError, match="expected at least"):
        TiledDetector(Detector(RedBackend()), tiles)


def test_a_part_of_an_image_in_a_gpus_memory() -> None:
    image = DeviceImage(1000, (300, 3, 1), (50, 100), 0, None, None)
    part = crop(image, 10, 20, 40, 30)
    assert isinstance(part, DeviceImage)
    assert (part.address, part.size_hw, part.strides) == (1000 + 20 * 300 + 10 * 3, (10, 30), (300, 3, 1))


def test_the_commands_cut_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = write_red_onnx(tmp_path / "red.onnx")
    image, boxes = scene()
    (tmp_path / "images").mkdir()
    cv2.imwrite(str(tmp_path / "images" / "a.png"), image[..., ::-1])
    out = tmp_path / "out"
    command = [str(model), str(tmp_path / "images"), "-o", str(out), "--tiles", "64", "--no-whole"]
    assert detect(command) == 0
    rows = json.loads((out / "detections.json").read_text())["images"]
    assert len(rows[0]["detections"]) >= len(boxes)
    assert (out / "a.jpg").exists()
    annotations = [
        {"id": i + 1, "image_id": 1, "category_id": 7, "bbox": [x1, y1, x2 - x1, y2 - y1]}
        for i, (x1, y1, x2, y2) in enumerate(boxes)
    ]
    content = {
        "images": [{"id": 1, "file_name": "a.png", "height": 300, "width": 420}],
        "annotations": annotations,
        "categories": [{"id": 7, "name": "red"}, {"id": 9, "name": "other"}],
    }
    (tmp_path / "a.json").write_text(json.dumps(content))
    base = [str(model), "--annotations", str(tmp_path / "a.json"), "--images", str(tmp_path / "images")]
    ap = {}
    for name, options in {"plain": [], "tiles": ["--tiles", "64"]}.items():
        assert evaluate([*base, *options, "--json", str(tmp_path / f"{name}.m")]) == 0
        ap[name] = json.loads((tmp_path / f"{name}.m").read_text())["AP"]
    assert ap["plain"] < 0.1 < 0.5 < ap["tiles"]
    part = tmp_path / "part.json"
    assert evaluate([*base, "--tiles", "64", "--shard", "0/1", "--results-out", str(part)]) == 0
    assert json.loads(part.read_text())["shard"]["origin"]["tiles"]["side"] == 64
    with pytest.raises(UserError, match="need --tiles PX"):
        evaluate([*base, "--overlap", "0.3"])
    capsys.readouterr()
