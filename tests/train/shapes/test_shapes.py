"""The built-in data set: the same bytes every time, boxes that fit what is drawn, never half a data set."""

import contextlib
import errno
import hashlib
import io
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from runtime.errors import UserError
from train.shapes import Settings, generate, make_image
from train.shapes import dataset as shapes
from train.shapes.draw import DrawnObject, cut_to_mask, draw_image
from train.shapes.outlines import CATEGORIES, Outline, place, random_outline

SMALL = Settings(train=20, val=17, seed=3, size=96)
Drawn = list[tuple[np.ndarray, list[DrawnObject]]]


@pytest.fixture(scope="module")
def drawn() -> Drawn:
    return [draw_image(np.random.default_rng([7, index]), 256) for index in range(240)]


@pytest.fixture(scope="module")
def small_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("shapes") / "set"
    assert generate(out, SMALL, progress=False)
    return out


def hashes(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def slow_coverage(outline: Outline, x0: int, y0: int, height: int, width: int, fine: int = 6) -> np.ndarray:
    """Share of every pixel inside the outline: crossings of a ray to the right, counted sample by sample."""
    ys, xs = (np.mgrid[0 : height * fine, 0 : width * fine] + 0.5) / fine
    ys, xs = ys + y0, xs + x0
    inside = np.zeros(xs.shape, bool)
    for part in outline:
        odd = np.zeros(xs.shape, bool)
        for contour in part:
            for (ax, ay), (bx, by) in zip(
                contour.astype(float), np.roll(contour, -1, axis=0).astype(float), strict=True
            ):
                if ay != by:
                    odd ^= ((ay <= ys) != (by <= ys)) & (xs < ax + (ys - ay) / (by - ay) * (bx - ax))
        inside |= odd
    return inside.reshape(height, fine, width, fine).mean(axis=(1, 3))


# One image


def test_an_empty_image_has_no_boxes_but_their_shapes(drawn: Drawn) -> None:
    index = next(i for i in range(100) if not len(make_image(0, "train", i, 64)[1]))
    image, boxes, labels = make_image(0, "train", index, 64)
    assert image.std() > 1  # the background is there all the same
    assert (boxes.shape, boxes.dtype, labels.shape, labels.dtype) == ((0, 4), np.float32, (0,), np.int64)


def test_an_image_depends_on_seed_split_and_index_only() -> None:
    first = make_image(5, "train", 11)
    make_image(5, "train", 12)
    np.random.seed(1)  # noqa: NPY002 the global generator must not matter
    for again, before in zip(make_image(5, "train", 11), first, strict=True):
        np.testing.assert_array_equal(again, before)
    for other in (make_image(6, "train", 11), make_image(5, "val", 11), make_image(5, "train", 12)):
        assert other[0].shape != first[0].shape or (other[0] != first[0]).mean() > 0.5


def test_an_unknown_split_is_named() -> None:
    with pytest.raises(UserError, match="no split 'test'; expected one of train, val"):
        make_image(0, "test", 0)


@pytest.mark.parametrize("label", range(len(CATEGORIES)))
def test_masks_and_boxes_fit_an_independent_rendering(label: int) -> None:
    rng = np.random.default_rng(label)
    for longer in (8.0, 11.0, 19.0, 37.0, 80.0):
        centre = rng.uniform(longer / 2 + 2, 94 - longer / 2, 2)
        outline = place(random_outline(label, rng), rng.uniform(0, 7), longer, (centre[0], centre[1]))
        coverage = slow_coverage(outline, 0, 0, 96, 96)
        found = cut_to_mask(label, outline, 96, 96)
        assert found is not None
        x0, y0, x1, y1 = found.box_xyxy
        assert found.mask[0].any()
        assert found.mask[-1].any()
        assert found.mask[:, 0].any()
        assert found.mask[:, -1].any()
        # Half-covered pixels may fall either way; surely covered ones lie in the box, whose ends touch covered ones.
        sure, possible = coverage > 0.75, coverage > 0.25
        assert not sure[:y0].any()
        assert not sure[y1:].any()
        assert not sure[:, :x0].any()
        assert not sure[:, x1:].any()
        assert possible[y0].any()
        assert possible[y1 - 1].any()
        assert possible[:, x0].any()
        assert possible[:, x1 - 1].any()
        full = np.zeros((96, 96), bool)
        full[y0:y1, x0:x1] = found.mask
        assert not (sure & ~full).any()
        assert not (full & ~possible).any()
        assert found.area == pytest.approx(coverage.sum(), rel=0.25 if longer < 30 else 0.06)


def test_the_box_is_cut_at_the_image_and_objects_mostly_outside_are_refused() -> None:
    square = [[np.array([(-0.5, -0.5), (0.5, -0.5), (0.5, 0.5), (-0.5, 0.5)])]]
    cut = cut_to_mask(1, place(square, 0.0, 20.0, (6.0, 50.0)), 64, 96)
    assert cut is not None
    assert cut.box_xyxy == (0, 40, 16, 60)
    assert cut.area == 16 * 20
    assert cut_to_mask(1, place(square, 0.0, 20.0, (2.0, 50.0)), 64, 96) is None  # 60 % inside
    assert cut_to_mask(1, place(square, 0.0, 20.0, (50.0, 62.0)), 64, 96) is None


# Many images


def test_sizes_counts_and_classes_span_what_is_promised(drawn: Drawn) -> None:
    counts = [len(objects) for _, objects in drawn]
    assert min(counts) == 0
    assert 1 in counts
    assert 0.01 < np.mean(np.array(counts) == 0) < 0.12
    assert 10 <= max(counts) <= 12
    assert {image.shape for image, _ in drawn} == {(256, 256, 3), (192, 256, 3), (256, 192, 3)}
    shares = np.bincount([o.label for _, objects in drawn for o in objects], minlength=8) / sum(counts)
    assert shares.min() > 0.08
    assert shares.max() < 0.18
    relative = []
    for image, objects in drawn:
        height, width = image.shape[:2]
        for o in objects:
            x0, y0, x1, y1 = o.box_xyxy
            assert 0 <= x0 < x1 <= width
            assert 0 <= y0 < y1 <= height
            assert 8 <= max(x1 - x0, y1 - y0) <= 0.6 * min(height, width)
            relative.append(max(x1 - x0, y1 - y0) / min(height, width))
    longer = np.array(relative) * 224
    assert longer.min() < 10
    assert max(relative) > 0.55
    # None of the size ranges that COCO's AP distinguishes is rare.
    assert 0.2 < np.mean(longer < 32) < 0.8
    assert np.mean(longer > 96) > 0.05


def test_occlusion_happens_and_never_goes_too_far(drawn: Drawn) -> None:
    shares = []
    for image, objects in drawn:
        owner = np.full(image.shape[:2], -1)
        for index, o in enumerate(objects):
            x0, y0, x1, y1 = o.box_xyxy
            owner[y0:y1, x0:x1][o.mask] = index
        shares += [np.count_nonzero(owner == index) / o.area for index, o in enumerate(objects)]
    assert min(shares) >= 0.3
    assert 0.03 < np.mean(np.array(shares) < 0.95) < 0.4


def test_objects_stand_out_from_what_surrounds_them(drawn: Drawn) -> None:
    contrasts = []
    for image, objects in drawn[:120]:
        taken = np.zeros(image.shape[:2], bool)
        for o in reversed(objects):  # the foremost first: only those that nothing hides
            x0, y0, x1, y1 = o.box_xyxy
            mask = np.zeros_like(taken)
            mask[y0:y1, x0:x1] = o.mask
            around = cv2.dilate(mask.astype(np.uint8), np.ones((7, 7), np.uint8)).astype(bool) & ~mask
            if not taken[around | mask].any():
                contrasts.append(np.abs(np.median(image[mask], axis=0) - np.median(image[around], axis=0)).max())
            taken |= mask
    assert len(contrasts) > 200
    assert min(contrasts) > 25
    assert np.percentile(contrasts, 3) > 50


def test_backgrounds_are_noisy_and_textured(drawn: Drawn) -> None:
    noise = []
    for image, objects in drawn:
        free = np.ones(image.shape[:2], bool)
        for o in objects:
            x0, y0, x1, y1 = o.box_xyxy
            free[max(0, y0 - 3) : y1 + 3, max(0, x0 - 3) : x1 + 3] = False
        if free.mean() > 0.2:
            grey = image.astype(np.float32).mean(axis=2)
            noise.append((grey - cv2.blur(grey, (3, 3)))[free].std())
    assert len(noise) > 150
    assert min(noise) > 0.5
    assert max(noise) > 6


# The data set on disk


def test_the_same_settings_give_the_same_bytes(small_set: Path, tmp_path: Path) -> None:
    assert generate(tmp_path / "again", SMALL, progress=False)
    assert hashes(tmp_path / "again") == hashes(small_set)
    # A larger set starts with the same images.
    assert generate(tmp_path / "more", Settings(train=25, val=17, seed=3, size=96), progress=False)
    more = hashes(tmp_path / "more")
    images = {name: digest for name, digest in hashes(small_set).items() if not name.endswith(".json")}
    assert len(images) == 37
    assert images.items() <= more.items()


def test_several_processes_write_the_same_bytes(small_set: Path, tmp_path: Path) -> None:
    assert generate(tmp_path / "parallel", SMALL, progress=False, processes=2)
    assert hashes(tmp_path / "parallel") == hashes(small_set)


def test_files_hold_what_make_image_draws(small_set: Path) -> None:
    content = json.loads((small_set / "val.json").read_text())
    assert [c["id"] for c in content["categories"]] == [1, 2, 3, 5, 6, 8, 11, 13]
    index_of = {c["id"]: index for index, c in enumerate(content["categories"])}
    formats = set()
    for index, entry in enumerate(content["images"]):
        image, boxes, labels = make_image(3, "val", index, 96)
        stored = cv2.imread(str(small_set / "val" / entry["file_name"]))[..., ::-1]
        assert stored.shape == image.shape == (entry["height"], entry["width"], 3)
        lossless = entry["file_name"].endswith(".png")
        formats.add(lossless)
        assert np.abs(stored.astype(int) - image).mean() <= (0 if lossless else 12)
        own = [a for a in content["annotations"] if a["image_id"] == entry["id"]]
        assert [index_of[a["category_id"]] for a in own] == labels.tolist()
        found = np.array([a["bbox"] for a in own], np.float32).reshape(-1, 4)
        np.testing.assert_array_equal(found, np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1))
        assert all(0 < a["area"] <= a["bbox"][2] * a["bbox"][3] and a["iscrowd"] == 0 for a in own)
    assert formats == {False, True}


@pytest.mark.parametrize("split", ["train", "val"])
def test_pycocotools_reads_it_and_the_truth_scores_1(small_set: Path, split: str) -> None:
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(small_set / f"{split}.json"))
        annotations = truth.dataset["annotations"]
        assert len({a["id"] for a in annotations}) == len(annotations) > 20
        keys = ("image_id", "category_id", "bbox")
        results = truth.loadRes([{**{k: a[k] for k in keys}, "score": 0.9} for a in annotations])
        evaluation = COCOeval(truth, results, "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    assert evaluation.stats[0] == pytest.approx(1.0)


def test_a_complete_set_is_left_alone(small_set: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in small_set.rglob("*")}
    assert not generate(small_set, SMALL, progress=False)
    assert {path: path.stat().st_mtime_ns for path in small_set.rglob("*")} == before


def test_other_settings_need_force(tmp_path: Path) -> None:
    out = tmp_path / "set"
    one, two = Settings(2, 1, seed=0, size=64), Settings(2, 1, seed=1, size=64)
    generate(out, one, progress=False)
    before = hashes(out)
    with pytest.raises(UserError, match="other settings; choose another folder, or replace it: --force"):
        generate(out, two, progress=False)
    assert hashes(out) == before
    assert generate(out, two, force=True, progress=False)
    assert hashes(out) != before
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_a_damaged_set_is_noticed(tmp_path: Path) -> None:
    out, settings = tmp_path / "set", Settings(3, 1, size=64)
    generate(out, settings, progress=False)
    (out / "train" / "000001.jpg").unlink()
    with pytest.raises(UserError, match="files are missing"):
        generate(out, settings, progress=False)
    generate(out, settings, force=True, progress=False)
    (out / "val.json").write_text('{"images": [')
    with pytest.raises(UserError, match="files are missing"):
        generate(out, settings, progress=False)


@pytest.mark.parametrize("force", [False, True])
def test_foreign_files_are_never_replaced(tmp_path: Path, force: bool) -> None:
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(UserError, match="something other than a shapes data set"):
        generate(tmp_path, SMALL, force=force, progress=False)
    with pytest.raises(UserError, match="not a folder"):
        generate(tmp_path / "mine.txt", SMALL, force=force, progress=False)
    with pytest.raises(UserError, match="cannot write the data set"):
        generate(tmp_path / "mine.txt" / "set", SMALL, force=force, progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize("stopped_by", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_a_failure_half_way_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stopped_by: BaseException
) -> None:
    out = tmp_path / "set"
    generate(out, Settings(2, 1, size=64), progress=False)
    before, threads = hashes(out), cv2.getNumThreads()
    calls = iter(range(100))

    def encode_until_full(image: np.ndarray, suffix: str) -> bytes:
        if next(calls) == 3:
            raise stopped_by
        return b"x"

    monkeypatch.setattr(shapes, "encode_image", encode_until_full)
    expected = UserError if isinstance(stopped_by, OSError) else KeyboardInterrupt
    with pytest.raises(expected, match="No space left on device.*free some" if expected is UserError else None):
        generate(out, Settings(9, 1, size=64), force=True, progress=False)
    assert hashes(out) == before
    assert [path.name for path in tmp_path.iterdir()] == ["set"]
    assert cv2.getNumThreads() == threads


@pytest.mark.parametrize(
    ("field", "value"), [("train", 0), ("val", -1), ("seed", -1), ("seed", 2**32), ("size", 63), ("size", 5000)]
)
def test_settings_out_of_range_are_refused(field: str, value: int) -> None:
    with pytest.raises(UserError, match=f"{field} is {value}; expected a whole number, at least"):
        Settings(**{field: value})
