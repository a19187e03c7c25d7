"""An exported file in every backend of this machine: the same detections as in ONNX Runtime on the CPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from export.verification.images import make_cases, synthetic_images
from export.verification.matching import count_unmatched
from runtime.backends import Backend, BackendError, open_backend
from runtime.detections import Detections, nms_candidates, postprocess

from .conftest import Exported

pytest.importorskip("openvino", reason="one of the backends")


@pytest.fixture(scope="module")
def reference(exported: Exported) -> Backend:
    return open_backend(exported.model, backend="cpu", threads=1)


@pytest.fixture(scope="module")
def openvino(exported: Exported) -> Backend:
    return open_backend(exported.model, backend="openvino", threads=1)


def unlike(expected: list[Detections], given: list[Detections]) -> float:
    """Share of detections without a partner on the other side."""
    total = sum(map(len, expected)) + sum(map(len, given))
    assert total > 0
    pairs = list(zip(expected, given, strict=True))
    return sum(count_unmatched(a, b) + count_unmatched(b, a) for a, b in pairs) / total


def test_openvino_finds_what_onnx_runtime_finds(reference: Backend, openvino: Backend) -> None:
    """At two batches and two canvases, as sets: near-ties may change places."""
    limits = reference.manifest.thresholds
    shapes = set()
    for case in make_cases(reference.manifest, synthetic_images()):
        shapes.add(case.images.shape)
        raw = openvino.infer(case.images, case.image_sizes, all_candidates=True)
        expected = reference.infer(case.images, case.image_sizes)
        assert unlike(postprocess(expected, limits), postprocess(raw, limits)) <= 0.01
        assert unlike(nms_candidates(expected), nms_candidates(raw)) <= 0.01
        plain = openvino.infer(case.images, case.image_sizes)
        for a, b in zip(postprocess(plain, limits), postprocess(raw, limits), strict=True):
            np.testing.assert_array_equal(a.boxes, b.boxes)
            np.testing.assert_array_equal(a.scores, b.scores)
    assert len({shape[0] for shape in shapes}) > 1
    assert len({shape[1:3] for shape in shapes}) > 1


def test_a_batch_equals_its_singles(reference: Backend, openvino: Backend) -> None:
    limits = reference.manifest.thresholds
    case = max(make_cases(reference.manifest, synthetic_images()), key=lambda case: len(case.images))
    together = postprocess(openvino.infer(case.images, case.image_sizes), limits)
    singles = [
        postprocess(openvino.infer(case.images[i : i + 1], case.image_sizes[i : i + 1]), limits)[0]
        for i in range(len(case.images))
    ]
    assert unlike(together, singles) <= 0.01


def test_the_comparison_notices_another_precision(exported: Exported, reference: Backend) -> None:
    """bfloat16 is a choice because it changes the numbers; were it the default, the tests above would fail."""
    case = make_cases(reference.manifest, synthetic_images())[0]
    limits = reference.manifest.thresholds
    expected = postprocess(reference.infer(case.images, case.image_sizes), limits)
    try:
        half = open_backend(exported.model, backend="openvino", precision_hint="bf16")
    except BackendError as error:
        pytest.skip(str(error))
    raw = half.infer(case.images, case.image_sizes)
    assert raw.num_detections.tolist() != [[0]] * len(case.images)
    assert unlike(expected, postprocess(raw, limits)) > 0.01


def test_the_comparison_notices_8_bits(converted: dict[str, Path], reference: Backend) -> None:
    """On a processor without bfloat16 too."""
    case = make_cases(reference.manifest, synthetic_images())[0]
    limits = reference.manifest.thresholds
    eight = open_backend(converted["int8"], backend="openvino", threads=1, allow_saturation=True)
    raw = eight.infer(case.images, case.image_sizes)
    assert unlike(postprocess(reference.infer(case.images, case.image_sizes), limits), postprocess(raw, limits)) > 0.01
