"""The Python API: one image, a list of them, a stream; from several threads; with a real ONNX file."""

from __future__ import annotations

import dataclasses
import gc
import itertools
import os
import shutil
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from runtime.backends import BackendError
from runtime.detections import Detections, RawOutputs
from runtime.detector import Detector
from runtime.errors import UserError
from runtime.images import ImageError, decode
from runtime.manifest import InputShapes

from ..support.fakes import RedBackend, manifest_with, red_image

SHAPES = [(60, 80), (80, 60), (64, 64), (200, 250), (30, 40), (7, 200)]


def photos(count: int) -> list[np.ndarray]:
    """Dark images of several sizes, each with a rectangle of its own."""
    made = []
    for number in range(count):
        height, width = SHAPES[number % len(SHAPES)]
        made.append(red_image(height, width, (number % 5, 1, width - 3 - number % 7, height - 2)))
    return made


def same(a: Detections, b: Detections) -> bool:
    return all(np.array_equal(getattr(a, f.name), getattr(b, f.name)) for f in dataclasses.fields(Detections))


def found(results: Iterator[Detections | UserError]) -> list[Detections]:
    taken = list(results)
    assert all(isinstance(result, Detections) for result in taken)
    return taken  # type: ignore[return-value]


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    paths = []
    for number, image in enumerate(photos(20)):
        paths.append(tmp_path / f"{number:02}.png")
        cv2.imwrite(str(paths[-1]), image[..., ::-1])
    return paths


def test_nothing() -> None:
    backend = RedBackend()
    assert Detector(backend)([]) == []
    assert list(Detector(backend).stream(iter(()))) == []
    assert backend.batches == []


def test_each_form_of_call_gives_what_each_image_alone_gives(model: Path, files: list[Path]) -> None:
    with Detector(model, threads=1) as detector:
        alone = [detector.detect([decode(path)])[0] for path in files]
        assert all(len(one) == 1 for one in alone)
        assert same(detector(files[0]), alone[0])
        assert same(detector(str(files[1])), alone[1])
        assert same(detector(decode(files[2])), alone[2])
        for given in (files, tuple(map(str, files)), [decode(path) for path in files], [files[0], decode(files[1])]):
            several = detector(given)
            assert isinstance(several, list)
            assert len(several) == len(given)
            assert all(map(same, several, alone))
        stack = np.stack([decode(files[0])] * 3)
        assert [same(one, alone[0]) for one in detector(stack)] == [True] * 3
        lazy = detector(iter(files))
        assert not isinstance(lazy, list)
        assert all(map(same, found(lazy), alone))
        for batch in (1, 3, 16):
            assert all(map(same, found(detector.stream(files, batch)), alone))


def test_a_stream_batches_by_canvas() -> None:
    backend = RedBackend()
    images = [red_image(60, 80), red_image(80, 60)] * 8
    list(Detector(backend).stream(images, batch=4))
    assert sorted(shape[:3] for shape in backend.batches) == [(4, 64, 96)] * 2 + [(4, 96, 64)] * 2


def test_a_bad_image_in_a_stream_takes_its_place_and_in_a_list_is_raised(model: Path, files: list[Path]) -> None:
    files[3].write_bytes(files[3].read_bytes()[:50])
    given = [*files[:5], np.zeros((4, 4), np.uint8), files[0].with_name("none.jpg"), *files[5:]]
    with Detector(model, threads=1) as detector:
        results = list(detector.stream(given))
        assert [isinstance(result, UserError) for result in results] == [n in (3, 5, 6) for n in range(len(given))]
        assert "truncated" in str(results[3])
        assert "image 5 is uint8 [4, 4], expected" in str(results[5])
        with pytest.raises(ImageError, match=r"03\.png: truncated"):
            detector(files)
        with pytest.raises(ImageError, match=r"none\.jpg: cannot read"):
            detector(files[0].with_name("none.jpg"))
        with pytest.raises(UserError, match=r"image 0 is float32 \[4, 4, 3\]"):
            detector(np.zeros((4, 4, 3), np.float32))


def test_a_canvas_that_the_graph_lacks_is_that_images_error() -> None:
    small = Detector(RedBackend(manifest_with(inputs=InputShapes(1, 4, 64, 64, 64, 64))))
    good, bad = red_image(64, 64, (4, 4, 60, 60)), red_image(60, 80)
    results = list(small.stream([good, bad, good]))
    assert [isinstance(result, BackendError) for result in results] == [False, True, False]
    with pytest.raises(BackendError, match="an image of 80×60 needs a canvas of 96×64"):
        small([good, bad])


@pytest.mark.parametrize(("asked", "used"), [(None, 4), (3, 3), (4, 4)])
def test_the_batch_is_the_graphs_or_the_asked_one(asked: int | None, used: int) -> None:
    backend = RedBackend(manifest_with(inputs=InputShapes(3, 4, 32, 512, 32, 512)))
    list(Detector(backend).stream([red_image()] * 12, asked))
    assert [shape[0] for shape in backend.batches] == [used] * (12 // used)


@pytest.mark.parametrize("asked", [0, 2, 5])
def test_a_batch_that_the_graph_does_not_take(asked: int) -> None:
    detector = Detector(RedBackend(manifest_with(inputs=InputShapes(3, 4, 32, 512, 32, 512))))
    with pytest.raises(BackendError, match=f"batch {asked}, but the graph was exported for 3 to 4; choose that"):
        list(detector.stream([red_image()], asked))


def test_a_stream_never_holds_more_than_a_few_images() -> None:
    given = 0

    def endless() -> Iterator[np.ndarray]:
        nonlocal given
        while True:
            given += 1
            yield red_image()

    results = Detector(RedBackend()).stream(endless(), batch=2)
    for taken in range(1, 101):
        next(results)
        assert given <= taken + 40
    results.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("pipeline")]


def test_a_sequence_that_makes_its_images_is_read_as_a_stream() -> None:
    class Lazy(Sequence[np.ndarray]):
        reads = 0

        def __len__(self) -> int:
            return 500

        def __getitem__(self, index: Any) -> Any:
            if index >= len(self):
                raise IndexError(index)
            self.reads += 1
            return red_image()

    images = Lazy()
    results = Detector(RedBackend()).stream(images, batch=2)
    next(results)
    assert images.reads < 100
    results.close()
    assert len(Detector(RedBackend())(images)) == len(images)


def test_several_threads_use_one_detector(model: Path, files: list[Path]) -> None:
    images = photos(20)
    with Detector(model, threads=1) as detector, ThreadPoolExecutor(6) as pool:
        expected = [detector.detect([image])[0] for image in images]
        uses = [
            lambda: found(detector.stream(images, 3)),
            lambda: detector(files),
            lambda: detector.detect(images),
            lambda: [detector(image) for image in images],
        ]
        for one in [pool.submit(use) for use in uses * 3]:
            assert all(map(same, one.result(timeout=60), expected))


@pytest.mark.parametrize("concurrency", [1, 2])
def test_the_backend_is_called_from_as_many_threads_as_it_gains_from(concurrency: int) -> None:
    class Watched(RedBackend):
        lock, inside, most = threading.Lock(), 0, 0
        together = threading.Barrier(concurrency)

        def infer(self, *arguments: np.ndarray, **options: object) -> RawOutputs:
            with self.lock:
                self.inside += 1
                self.most = max(self.most, self.inside)
            self.together.wait(20)  # breaks if fewer come
            raw = super().infer(*arguments, **options)  # type: ignore[arg-type]
            with self.lock:
                self.inside -= 1
            return raw

    backend = Watched()
    backend.concurrency = concurrency
    detector = Detector(backend)
    assert len(list(detector.stream([red_image()] * 32, batch=2))) == 32
    with ThreadPoolExecutor(4) as pool:
        assert len(list(pool.map(lambda _: detector(red_image()), range(32)))) == 32
    assert backend.most == concurrency


def test_a_backend_that_fails_ends_the_stream_with_its_error() -> None:
    class Failing(RedBackend):
        def infer(self, images: np.ndarray, *arguments: object, **options: object) -> RawOutputs:
            if images.max() < 200:  # no red in it
                raise MemoryError("a batch of 2 is too much")
            return super().infer(images, *arguments, **options)  # type: ignore[arg-type]

    photos = (red_image(box=None) if number in (6, 7) else red_image() for number in itertools.count())
    results = Detector(Failing()).stream(photos, batch=2)
    taken: list[object] = []
    with pytest.raises(MemoryError, match="a batch of 2 is too much"):
        taken.extend(results)
    assert len(taken) == 6  # what came before the batch that failed
    gc.collect()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("pipeline")]


def test_a_model_file_that_is_replaced_meanwhile_does_not_matter(model: Path, tmp_path: Path) -> None:
    path = Path(shutil.copy(model, tmp_path / "model.onnx"))
    other = tmp_path / "other.onnx"
    other.write_bytes(b"something else")
    images = photos(40)
    with Detector(path, threads=1) as detector:
        expected = detector.detect(images)
        results = detector.stream(iter(images), 2)
        first = next(results)
        os.replace(other, path)
        rest = found(results)
        assert isinstance(first, Detections)
        assert all(map(same, [first, *rest], expected))
    path.write_bytes(b"")
    with pytest.raises(BackendError, match="the file is empty"):
        Detector(path)
