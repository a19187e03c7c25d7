"""Tiles together with videos, streams, threads, fixed shapes, served models and damaged files."""

from __future__ import annotations

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from runtime.coco import load_coco
from runtime.coco.command import main as evaluate
from runtime.coco.evaluation import score_detector
from runtime.coco.run import RunSettings
from runtime.detect import main as detect
from runtime.detecting.images import DetectSettings
from runtime.detecting.video import detect_stream
from runtime.detection_files import DetectionFiles, detection_row
from runtime.detections import Detections, RawOutputs
from runtime.detector import Detector
from runtime.errors import UserError
from runtime.images import ImageError
from runtime.images.stream import LiveStream
from runtime.images.video import Video
from runtime.manifest import InputShapes
from runtime.tiling import TiledDetector, Tiles
from runtime.tta import TtaSettings, with_tta

from ...support.fakes import MANIFEST, RedBackend, manifest_with, red_image, write_red_onnx
from ...support.streams import ADDRESS, Source

CUT = Tiles(48, 0.25)


def same(a: Detections, b: Detections) -> bool:
    return all(np.array_equal(getattr(a, name), getattr(b, name)) for name in ("boxes", "scores", "classes"))


def spotted(height: int, width: int, seed: int) -> np.ndarray:
    """An image with red spots here and there."""
    image, rng = red_image(height, width, None), np.random.default_rng(seed)
    for y, x in rng.integers(0, (height - 12, width - 12), (6, 2)):
        image[y : y + 10, x : x + 12] = (250, 0, 0)
    return image


def write_video(path: Path, frames: int) -> Path:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), 10, (160, 128))
    if not writer.isOpened():
        pytest.skip("this OpenCV cannot encode a video")
    for number in range(frames):
        writer.write(spotted(128, 160, number)[..., ::-1].copy())
    writer.release()
    return path


def test_frames_of_a_video_are_cut(model: Path, tmp_path: Path) -> None:
    video = write_video(tmp_path / "film.mp4", 5)
    backend = ["--backend", "cpu", "--threads", "1"]
    command = [str(model), str(video), "-o", str(tmp_path / "out"), "--batch", "2", *backend]
    assert detect([*command, "--tiles", "48", "--overlap", "0.25"]) == 0
    rows = json.loads((tmp_path / "out" / "detections.json").read_text())["images"]
    with Detector(model, backend="cpu", threads=1) as detector, Video(video) as opened:
        frames = list(opened.frames())
        expected = [TiledDetector(detector, CUT).detect([frame])[0] for frame in frames]
        plain = detector.detect(frames)
    assert [row["frame"] for row in rows] == list(range(5))
    for row, found in zip(rows, expected, strict=True):
        assert row["detections"] == detection_row((128, 160), found, MANIFEST)["detections"]
    assert sum(map(len, expected)) > 2 * sum(map(len, plain)), "else the frames were not cut"
    drawn = cv2.VideoCapture(str(tmp_path / "out" / "film.mp4"))
    assert int(drawn.get(cv2.CAP_PROP_FRAME_COUNT)) == 5
    drawn.release()


class Rows:
    """Keeps the rows that it is given."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def add(self, row: dict[str, Any]) -> None:
        self.rows.append(row)

    def skip(self, entry: dict[str, str]) -> None:
        raise AssertionError(entry)


class Spotted(Source):
    """A camera whose frames are larger than a tile."""

    def open(self, address: str) -> Any:
        capture = super().open(address)
        read, frame = capture.read, spotted(100, 120, 3)[..., ::-1]
        capture.read = lambda: (read()[0], frame.copy())  # type: ignore[method-assign]
        return capture


def test_frames_of_a_stream_are_cut(tmp_path: Path) -> None:
    camera = Spotted(100, pause_s=0.01)
    stream = LiveStream(ADDRESS, 1, open_capture=camera.open, first_wait_s=0.01)
    kept, settings = Rows(), DetectSettings(batch=2, draws=False, max_frames=4, tiles=CUT)
    with stream:
        detect_stream(Detector(RedBackend()), stream, tmp_path, DetectionFiles([kept]), settings)
    expected = TiledDetector(Detector(RedBackend()), CUT).detect([spotted(100, 120, 3)])[0]
    row = detection_row((100, 120), expected, MANIFEST)
    assert len(row["detections"]) > 2
    assert [one["detections"] for one in kept.rows] == [row["detections"]] * 4


class Strict(RedBackend):
    """Takes one shape only, and one call at a time."""

    def __init__(self, shape: tuple[int, int, int], pause_s: float = 0.0) -> None:
        batch, height, width = shape
        super().__init__(manifest_with(inputs=InputShapes(batch, batch, height, height, width, width)))
        self.shape, self.pause_s = (batch, height, width, 3), pause_s
        self.turn = threading.Lock()

    def infer(self, images: np.ndarray, image_sizes: np.ndarray, **options: Any) -> RawOutputs:
        assert images.shape == self.shape
        assert image_sizes.shape == (self.shape[0], 2)
        assert self.turn.acquire(blocking=False), "two calls at once"
        time.sleep(self.pause_s)
        found = super().infer(images, image_sizes, **options)
        self.turn.release()
        return found


def test_a_graph_of_a_fixed_shape_is_given_full_batches() -> None:
    images = [spotted(100, 120, 1), spotted(40, 30, 2), spotted(128, 100, 3)]
    free, fixed = Detector(RedBackend()), Strict((5, 128, 128))
    found = TiledDetector(Detector(fixed), CUT).detect(images)
    assert all(same(one, two) for one, two in zip(found, TiledDetector(free, CUT).detect(images), strict=True))
    windows = 12 + 12 + 3  # the tiles, the two whole images, and the image that is not cut
    assert len(fixed.batches) <= -(-windows // 5) + 1, "tiles of several images share batches"
    with pytest.raises(UserError, match=r"batch 2, but the graph was exported for 5") as refused:
        TiledDetector(Detector(fixed), Tiles(48, batch=2))
    assert "\n" not in str(refused.value)


def test_an_onnx_file_of_a_fixed_shape(tmp_path: Path, model: Path) -> None:
    """ONNX Runtime itself refuses another batch or canvas than the file's."""
    import onnx

    from ...support.fakes import save_with_hash

    fixed = write_red_onnx(tmp_path / "fixed.onnx", manifest_with(inputs=InputShapes(4, 4, 64, 64, 96, 96)))
    content = onnx.load(fixed)
    for value in (*content.graph.input, *content.graph.output):
        dims = value.type.tensor_type.shape.dim
        for dim, number in zip(dims, (4, 64, 96), strict=False):
            if dim.dim_param:
                dim.dim_value = number
    save_with_hash(content, fixed)
    cv2.imwrite(str(tmp_path / "a.png"), spotted(90, 120, 5)[..., ::-1])
    rows = []
    for path in (fixed, model):
        command = [str(path), str(tmp_path / "a.png"), "-o", str(tmp_path / "out"), "--json-only", "--backend", "cpu"]
        assert detect([*command, "--threads", "1", "--tiles", "48"]) == 0
        rows.append(json.loads((tmp_path / "out" / "detections.json").read_text())["images"])
    assert rows[0] == rows[1]
    assert len(rows[0][0]["detections"]) > 2
    cv2.imwrite(str(tmp_path / "b.png"), spotted(300, 120, 5)[..., ::-1])  # the whole image's canvas is upright
    both = [str(fixed), str(tmp_path / "b.png"), str(tmp_path / "a.png"), "-o", str(tmp_path / "out")]
    assert detect([*both, "--json-only", "--backend", "cpu", "--threads", "1", "--tiles", "48"]) == 0
    content = json.loads((tmp_path / "out" / "detections.json").read_text())
    assert content["images"] == rows[0]
    (skipped,) = content["skipped"]
    assert "needs a canvas of" in skipped["reason"]
    assert "\n" not in skipped["reason"]


def test_several_threads_share_a_tiled_detector() -> None:
    images = [spotted(90 + 7 * number, 130, number) for number in range(8)]
    detector = Detector(Strict((3, 128, 128), pause_s=0.001))
    tiled = TiledDetector(detector, CUT)
    alone = [tiled.detect([image])[0] for image in images]
    plain = detector.detect(images)
    with ThreadPoolExecutor(8) as threads:
        for _ in range(3):
            answers = list(threads.map(lambda image: tiled.detect([image])[0], images))
            between = list(threads.map(lambda image: (tiled(image), detector(image)), images))
            assert all(same(one, two) for one, two in zip(answers, alone, strict=True))
            assert all(same(one, two) for (one, _), two in zip(between, alone, strict=True))
            assert all(same(one, two) for (_, one), two in zip(between, plain, strict=True))


def test_several_threads_read_one_file_in_strips(tmp_path: Path) -> None:
    image = spotted(200, 150, 4)
    cv2.imwrite(str(tmp_path / "a.png"), image[..., ::-1])
    tiled = TiledDetector(Detector(RedBackend()), CUT)
    strips = tiled.load(tmp_path / "a.png", 5_000)
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda _: tiled.detect([strips])[0], range(8)))
    assert all(same(one, tiled.detect([image])[0]) for one in found)


def damaged_among_others(folder: Path) -> Path:
    """a.png and c.png with spots, and b.png, whose damage shows in its last rows."""
    folder.mkdir()
    for name in "ac":
        cv2.imwrite(str(folder / f"{name}.png"), spotted(120, 150, ord(name))[..., ::-1])
    noise = np.random.default_rng(0).integers(0, 256, (120, 150, 3), np.uint8)
    (folder / "b.png").write_bytes(cv2.imencode(".png", noise)[1].tobytes()[:-2000])
    return folder


def test_an_image_whose_damage_shows_while_it_is_detected_on_is_skipped(model: Path, tmp_path: Path) -> None:
    folder = damaged_among_others(tmp_path / "images")
    command = [str(model), str(folder), "-o", str(tmp_path / "out"), "--json-only", "--backend", "cpu"]
    assert detect([*command, "--threads", "1", "--tiles", "48", "--max-megapixels", "0.005"]) == 0
    content = json.loads((tmp_path / "out" / "detections.json").read_text())
    assert content["complete"]
    assert [Path(row["file"]).name for row in content["images"]] == ["a.png", "c.png"]
    (entry,) = content["skipped"]
    assert entry["file"] == str(folder / "b.png")
    assert "truncated" in entry["reason"]
    with Detector(model, backend="cpu", threads=1) as detector:
        for row in content["images"]:
            found = TiledDetector(detector, Tiles(48)).detect([detector.load(row["file"])])[0]
            assert row["detections"] == detection_row((120, 150), found, MANIFEST)["detections"]
        with pytest.raises(ImageError, match=r"b\.png: truncated"):
            TiledDetector(detector, Tiles(48)).detect([TiledDetector(detector, CUT).load(folder / "b.png", 5_000)])


def test_such_an_image_is_skipped_in_a_data_set_too(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = damaged_among_others(tmp_path / "images")
    images = [{"id": i, "file_name": f"{name}.png", "height": 120, "width": 150} for i, name in enumerate("abc")]
    (tmp_path / "set.json").write_text(
        json.dumps({"images": images, "annotations": [], "categories": [{"id": 7, "name": "red"}]})
    )
    command = [str(model), "--annotations", str(tmp_path / "set.json"), "--images", str(folder)]
    more = ["--tiles", "48", "--max-megapixels", "0.005", "--backend", "cpu", "--threads", "1"]
    assert evaluate([*command, *more, "--results-out", str(tmp_path / "found.json")]) == 0
    told = capsys.readouterr()
    assert "b.png: truncated" in told.err + told.out
    found = json.loads((tmp_path / "found.json").read_text())
    assert {one["image_id"] for one in found} == {0, 2}
    dataset = load_coco(tmp_path / "set.json", folder)
    with Detector(model, backend="cpu", threads=1) as detector:
        several = RunSettings(batch=3, max_pixels=5_000)
        speed = score_detector(with_tta(detector, TtaSettings(tiles=Tiles(48))), dataset, settings=several).speed
    assert speed.images == 2
    assert speed.seconds_network > 0


def test_a_served_model_is_given_tiles(tmp_path: Path) -> None:
    pytest.importorskip("tritonclient.grpc", reason="pip install 'atss-toolkit[triton]'")
    from runtime.triton import TritonDetector

    from ...support.triton_fake import FakeTriton

    cv2.imwrite(str(tmp_path / "a.png"), spotted(120, 150, 6)[..., ::-1])
    server = FakeTriton(manifest_with(inputs=InputShapes(4, 4, 128, 128, 128, 128)))  # strict, and always full
    try:
        assert detect([server.url, str(tmp_path), "-o", str(tmp_path / "out"), "--json-only", "--tiles", "48"]) == 0
        (row,) = json.loads((tmp_path / "out" / "detections.json").read_text())["images"]
        found = TiledDetector(Detector(RedBackend()), Tiles(48)).detect([spotted(120, 150, 6)])[0]
        assert row["detections"] == detection_row((120, 150), found, MANIFEST)["detections"]
        assert len(row["detections"]) > 4
        assert len(server.sent) == 13, "12 tiles and the whole image"
        with TritonDetector(server.url) as detector:
            seen = with_tta(detector, TtaSettings(flip=True, tiles=Tiles(48)))
            with pytest.raises(UserError, match="gives no candidates") as refused:
                seen.detect_prepared([spotted(120, 150, 6)])
            assert "\n" not in str(refused.value)
    finally:
        server.stop()
