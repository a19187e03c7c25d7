"""Detection at several sizes, mirrored or not, merged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtime.coco.command import main
from runtime.detections import Detections, RawOutputs
from runtime.detector import Detector
from runtime.errors import UserError
from runtime.manifest import Thresholds
from runtime.nms import iou_matrix
from runtime.tta import MultiScaleDetector, merge_views
from tests.support.fakes import RedBackend, manifest_with, red_image, write_red_onnx


class NoisyBackend(RedBackend):
    """Many overlapping candidates whose boxes and scores depend on the canvas, so that views disagree."""

    def infer(self, images: np.ndarray, image_sizes: np.ndarray, **options: Any) -> RawOutputs:
        self.batches.append(images.shape)
        count, rows = len(images), 60
        boxes, scores = np.zeros((count, rows, 4), np.float32), np.zeros((count, rows), np.float32)
        for index, (image, (height, width)) in enumerate(zip(images, image_sizes, strict=True)):
            rng = np.random.default_rng(int(image[:height, :width].astype(np.int64).sum()))
            corner = rng.uniform(0, 0.5, (rows, 2)) * (width, height)
            boxes[index] = np.concatenate([corner, corner + rng.uniform(0.2, 0.5, (rows, 2)) * (width, height)], 1)
            scores[index] = rng.uniform(0.05, 1, rows)
            scores[index, 50:] = 0
        classes = np.broadcast_to(np.arange(rows, dtype=np.int32) % 2, (count, rows))
        none = np.zeros((count, 1), np.int32)
        return RawOutputs(none, boxes[:, :0], scores[:, :0], classes[:, :0], none, boxes, scores, classes)


IMAGES = [
    red_image(60, 80),
    red_image(90, 60, (5, 5, 50, 80)),
    red_image(64, 64, None),
    red_image(60, 80, (30, 10, 70, 55)),
]


def same(a: Detections, b: Detections) -> bool:
    return all(np.array_equal(getattr(a, name), getattr(b, name)) for name in ("boxes", "scores", "classes"))


def test_no_image_and_nothing_found() -> None:
    several = MultiScaleDetector(Detector(RedBackend()), (32, 64), mirrored=True, vote=True)
    assert several.detect([]) == []
    assert len(several.detect([red_image(box=None)])[0]) == 0
    assert len(merge_views([], Thresholds())) == 0


@pytest.mark.parametrize("backend", [RedBackend, NoisyBackend])
def test_one_size_is_the_plain_way_bit_for_bit(backend: type[RedBackend]) -> None:
    plain = Detector(backend())
    one = MultiScaleDetector(plain, [64])
    assert all(same(a, b) for a, b in zip(one.detect(IMAGES), plain.detect(IMAGES), strict=True))
    other = MultiScaleDetector(plain, [96])
    pre = plain.manifest.preprocess.__class__(short_side=96, long_side=192)
    resized = Detector(backend(manifest_with(preprocess=pre)))
    assert all(same(a, b) for a, b in zip(other.detect(IMAGES), resized.detect(IMAGES), strict=True))


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("vote", [False, True])
def test_a_batch_equals_its_singles(mirrored: bool, vote: bool) -> None:
    several = MultiScaleDetector(Detector(NoisyBackend()), (48, 64, 100), mirrored, vote)
    together = several.detect(IMAGES)
    for image, found in zip(IMAGES, together, strict=True):
        assert len(found) > 5
        assert same(found, several.detect([image])[0])


def test_every_size_and_mirror_image_is_seen_and_mapped_back() -> None:
    backend = RedBackend()
    found = MultiScaleDetector(Detector(backend), (32, 64), mirrored=True).detect([red_image(64, 64, (8, 16, 40, 32))])[
        0
    ]
    assert [shape[1:3] for shape in backend.batches] == [(32, 32), (32, 32), (64, 64), (64, 64)]
    assert found.classes.tolist() == [0, 1], "the duplicates of four views are merged, class by class"
    for box in found.boxes:
        assert box == pytest.approx([8, 16, 40, 32], abs=1)


def slow_merge(parts: list[Detections], iou: float, most: int) -> list[tuple[float, int, list[float]]]:
    """Greedy NMS over the union, one pair at a time."""
    entries = [
        (float(s), int(c), b) for part in parts for s, c, b in zip(part.scores, part.classes, part.boxes, strict=True)
    ]
    kept: list[tuple[float, int, np.ndarray]] = []
    for score, label, box in sorted(entries, key=lambda entry: -entry[0]):
        if len(kept) < most and all(c != label or iou_matrix(box[None], b[None])[0, 0] <= iou for _, c, b in kept):
            kept.append((score, label, box))
    return [(score, label, box.tolist()) for score, label, box in kept]


def test_merging_is_nms_over_the_union() -> None:
    detector = Detector(NoisyBackend())
    views = [Detector(NoisyBackend(manifest_with(preprocess=_sides(s)))) for s in (48, 64)]
    parts = [view.detect_candidates(IMAGES[:1])[0] for view in views]
    assert all(len(part) == 50 for part in parts), "unused candidates are left out"
    expected = slow_merge(parts, detector.manifest.thresholds.nms_iou, 100)
    found = MultiScaleDetector(detector, (48, 64)).detect(IMAGES[:1])[0]
    got = zip(found.scores.tolist(), found.classes.tolist(), found.boxes.tolist(), strict=True)
    assert list(got) == expected
    assert len(expected) > max(len(slow_merge([part], 0.6, 100)) for part in parts), "neither view alone has all"


def _sides(short_side: int):  # type: ignore[no-untyped-def]
    pre = manifest_with().preprocess
    return pre.__class__(short_side=short_side, long_side=2 * short_side)


def test_voting_takes_the_weighted_mean_of_a_class() -> None:
    boxes = np.array([[0, 0, 10, 10], [2, 0, 12, 10], [0, 0, 10, 10], [50, 50, 60, 60], [5, 5, 5, 5]], np.float32)
    part = Detections(boxes, np.array([0.9, 0.6, 0.8, 0.7, 0.1], np.float32), np.array([0, 0, 1, 0, 0], np.int32))
    found = merge_views([part], Thresholds(nms_iou=0.5), vote=True)
    overlap = 80 / 120
    shifted = 2 * 0.6 * overlap / (0.9 + 0.6 * overlap)
    assert found.scores.tolist() == pytest.approx([0.9, 0.8, 0.7, 0.1])
    assert found.boxes[0] == pytest.approx([shifted, 0, 10 + shifted, 10])
    assert found.boxes[1:].tolist() == boxes[[2, 3, 4]].tolist(), "other classes, far boxes and empty ones stay"


def test_sizes_that_make_no_sense() -> None:
    for sizes in ((), (0, 64), (64, 64)):
        with pytest.raises(UserError, match="one or more different ones"):
            MultiScaleDetector(Detector(RedBackend()), sizes)


def test_a_graph_that_cannot_take_the_size_says_so() -> None:
    several = MultiScaleDetector(Detector(RedBackend()), (64, 4000))
    with pytest.raises(UserError, match=r"needs a canvas of .*exported for at most 512×512"):
        several.canvas_hw((60, 80))


def test_the_command_line_scores_several_sizes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import cv2

    box = (10, 20, 50, 40)
    images = [{"id": i, "file_name": f"{i}.png", "height": 60, "width": 80} for i in range(3)]
    for image in images:
        cv2.imwrite(str(tmp_path / image["file_name"]), red_image(60, 80, box)[..., ::-1])
    annotations = [{"id": i + 1, "image_id": i, "category_id": 7, "bbox": [10, 20, 40, 20]} for i in range(3)]
    categories = [{"id": 7, "name": "red"}, {"id": 9, "name": "other"}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (tmp_path / "a.json").write_text(json.dumps(content))
    model = write_red_onnx(tmp_path / "red.onnx")
    command = [str(model), "--annotations", str(tmp_path / "a.json"), "--images", str(tmp_path)]
    figures = {}
    for name, options in {"plain": [], "one": ["--scales", "64"], "many": ["--scales", "60", "120", "--flip"]}.items():
        out = tmp_path / f"{name}.json"
        assert main([*command, *options, "--json", str(out), "--results-out", str(tmp_path / f"{name}.r")]) == 0
        figures[name] = json.loads(out.read_text())["AP"]
    assert (tmp_path / "plain.r").read_text() == (tmp_path / "one.r").read_text()
    assert (tmp_path / "plain.r").read_text() != (tmp_path / "many.r").read_text()
    assert figures["many"] > 0.8
    capsys.readouterr()


@pytest.mark.parametrize(("legacy", "kept"), [(False, 2), (True, 1)])
def test_merging_honours_the_legacy_convention(legacy: bool, kept: int) -> None:
    boxes = np.array([[0, 0, 9, 9], [0, 0, 9, 5]], np.float32)  # IoU 45 / 81, or 60 / 100 where the last pixel counts
    parts = [Detections(boxes[i : i + 1], np.array([0.9 - i / 10], np.float32), np.zeros(1, np.int32)) for i in (0, 1)]
    assert len(merge_views(parts, Thresholds(nms_iou=0.58, legacy_plus_one=legacy))) == kept
