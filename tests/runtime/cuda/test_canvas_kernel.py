"""The kernel that lays images on canvases: its source, run by a compiler for the host, gives OpenCV's pixels.

The PTX beside the source, which GPUs run, is checked to be of that source.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.compile_kernels import KERNELS, NoCompiler, compile_ptx, load_nvrtc, mark
from benchmarks.device_images import Lay, NoHostCompiler, kernel_on_the_host
from runtime.images.preprocess import make_batch, reduction
from runtime.manifest import Preprocess

SOURCE = KERNELS / "canvas.cu"


@pytest.fixture(scope="module")
def lay(tmp_path_factory: pytest.TempPathFactory) -> Lay:
    """Lays an image on a canvas as the kernel does it."""
    try:
        return kernel_on_the_host(tmp_path_factory.mktemp("kernel"))
    except NoHostCompiler as error:
        pytest.skip(str(error))


def check(lay: Lay, image: np.ndarray, pre: Preprocess) -> None:
    (expected,) = make_batch([image], pre).images
    np.testing.assert_array_equal(lay(image, pre, expected.shape[:2]), expected)


@pytest.mark.parametrize("divide_large", [True, False])
def test_pixels_equal_opencvs_for_many_sizes(lay: Lay, divide_large: bool) -> None:
    random = np.random.default_rng(0)
    for _ in range(150):
        height, width = (int(side) for side in random.integers(1, 400, 2))
        short, long = sorted(int(side) for side in random.integers(8, 200, 2))
        pre = Preprocess(short_side=short, long_side=long, divide_large=divide_large)
        check(lay, random.integers(0, 256, (height, width, 3), dtype=np.uint8), pre)


@pytest.mark.parametrize("divide_large", [True, False])
@pytest.mark.parametrize("factor", [1, 2, 3, 4, 8, 16])
def test_pixels_equal_opencvs_for_whole_factors(lay: Lay, factor: int, divide_large: bool) -> None:
    """By 2, 4 and 8 large images are averaged; by 2 OpenCV averages even where a bilinear resize was asked for."""
    pre = Preprocess(short_side=40, long_side=60, pad_value=(1, 2, 3), divide_large=divide_large)
    image = np.random.default_rng(factor).integers(0, 256, (40 * factor, 52 * factor, 3), dtype=np.uint8)
    check(lay, image, pre)
    if divide_large:
        assert reduction((40 * factor, 52 * factor), (40, 52)) == {1: 1, 2: 2, 3: 2, 4: 4, 8: 8, 16: 8}[factor]


def test_pixels_equal_opencvs_for_every_value_and_layout(lay: Lay) -> None:
    pre = Preprocess(short_side=50, long_side=90)
    values = np.arange(256, dtype=np.uint8)
    image = np.stack(
        [np.add.outer(values[:64], values), np.add.outer(values[:64], values[::-1]), np.tile(values, (64, 1))], 2
    )
    check(lay, np.ascontiguousarray(image), pre)
    for layout in (
        np.ascontiguousarray(image.transpose(2, 0, 1)).transpose(1, 2, 0),
        np.ascontiguousarray(image[..., ::-1])[..., ::-1],
        np.repeat(image, 2, axis=1)[:, ::2],
    ):
        np.testing.assert_array_equal(layout, image)
        (expected,) = make_batch([np.ascontiguousarray(image)], pre).images
        np.testing.assert_array_equal(lay(layout, pre, expected.shape[:2]), expected)


def test_a_larger_canvas_is_padded(lay: Lay) -> None:
    pre = Preprocess(short_side=64, long_side=128, pad_value=(9, 200, 255))
    image = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    (expected,) = make_batch([image], pre, (160, 224)).images
    np.testing.assert_array_equal(lay(image, pre, (160, 224)), expected)


def test_the_ptx_is_of_this_source() -> None:
    """Otherwise: python -m benchmarks.compile_kernels."""
    source, ptx = SOURCE.read_bytes(), SOURCE.with_suffix(".ptx").read_bytes()
    assert ptx.startswith(mark(source))
    assert b".target sm_75" in ptx
    assert b"fma" not in ptx, "a fused multiply-add rounds otherwise than OpenCV does"
    assert b"\n.version 7.8\n" in ptx, "a newer version would need a newer driver"
    try:
        nvrtc = load_nvrtc()
    except NoCompiler as error:
        pytest.skip(f"not compiled again: {error}")
    assert compile_ptx(nvrtc, source) == ptx


def test_a_source_that_does_not_compile() -> None:
    try:
        nvrtc = load_nvrtc()
    except NoCompiler as error:
        pytest.skip(str(error))
    with pytest.raises(ValueError, match="error"):
        compile_ptx(nvrtc, b"nonsense")


def test_every_kernel_is_compiled() -> None:
    assert sorted(path.stem for path in Path(KERNELS).glob("*.cu")) == ["canvas"]
    assert sorted(path.stem for path in Path(KERNELS).glob("*.ptx")) == ["canvas"]
