"""Ranges: against plain NumPy over all numbers at once, and a cache that serves nothing but what it was made of."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import onnx
import pytest

from export.calibration import Calibration, CalibrationError, load_calibration
from export.onnx_model.network import cut_network, load_deployed
from export.onnx_model.session import open_session
from export.quantization.calibrate import (
    Histogram,
    calibrate,
    calibrate_cached,
    calibration_batch,
    evenly_spaced,
    list_images,
)
from export.verification.images import synthetic_images

from ..conftest import Exported


def filled(values: list[np.ndarray]) -> Histogram:
    """Of values with one channel."""
    histogram = Histogram()
    for array in values:
        histogram.add(array[None, None])
    return histogram


def test_nothing_and_zeros() -> None:
    assert Histogram().range("max") == (0, 0)
    assert Histogram().means() == ()
    for method in ("max", "mse", "percentile"):
        assert filled([np.zeros(10, np.float32)]).range(method) == (0, 0)  # type: ignore[arg-type]


@pytest.mark.parametrize("order", [1, -1])
def test_ranges_of_growing_and_shrinking_values(order: int) -> None:
    """Images in either order: bins that were doubled hold what went in before."""
    rng = np.random.default_rng(0)
    parts = [rng.normal(0, scale, 5000).astype(np.float32) for scale in (0.1, 1.0, 7.0)][::order]
    joined = np.concatenate(parts)
    histogram = filled(parts)
    assert histogram.range("max") == (joined.min(), joined.max())
    expected = np.percentile(np.abs(joined), 99.99, method="inverted_cdf")
    _, high = histogram.range("percentile")
    assert high == pytest.approx(min(float(expected), float(joined.max())), abs=2 * float(np.abs(joined).max()) / 2048)


@pytest.mark.parametrize("signed", [True, False])
def test_the_range_of_least_error(signed: bool) -> None:
    """Against trying ranges one after another with real rounding and clipping."""
    rng = np.random.default_rng(1)
    values = rng.laplace(0, 1, 60_000).astype(np.float32)
    values = values if signed else np.abs(values)

    def error(bound: float) -> float:
        step = bound / (127 if signed else 255)
        low = -127 if signed else 0
        rounded = np.clip(np.rint(values / step), low, 127 if signed else 255) * step
        return float(np.mean((rounded - values) ** 2))

    _, found = filled([values]).range("mse")
    tried = [error(bound) for bound in np.linspace(1, float(np.abs(values).max()), 200)]
    assert error(found) < 1.05 * min(tried)
    assert found < np.abs(values).max()


def test_means_are_of_all_numbers_of_a_channel() -> None:
    """Images of other canvases count by their places, not once each."""
    rng = np.random.default_rng(2)
    parts = [rng.normal(3, 1, shape).astype(np.float32) for shape in ((1, 2, 4, 4), (2, 2, 8, 3))]
    histogram = Histogram()
    for part in parts:
        histogram.add(part)
    joined = np.concatenate([part.transpose(1, 0, 2, 3).reshape(2, -1) for part in parts], axis=1)
    np.testing.assert_allclose(histogram.means(), joined.mean(axis=1), rtol=1e-6)


@pytest.mark.parametrize("width", [3, 15, 30, 64, 105])
def test_numbers_of_every_column_are_counted_alike(width: int) -> None:
    """A large value leaves a part of its numbers; a stride that divides the width would see some columns only."""
    rows = (1 << 20) // width
    for column in range(0, width, max(1, width // 5)):
        values = np.zeros((1, 1, rows, width), np.float32)
        values[..., column] = 1
        histogram = Histogram()
        histogram.add(values)
        counted = histogram.counts[-1] / histogram.counts.sum()
        assert counted == pytest.approx(1 / width, rel=0.02)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_are_refused(value: float) -> None:
    histogram = filled([np.array([1.0, -2.0], np.float32)])
    with pytest.raises(CalibrationError, match="not finite"):
        histogram.add(np.array([[[1.0, value, 3.0]]], np.float32))


def test_evenly_spaced_images() -> None:
    paths = [Path(str(i)) for i in range(10)]
    assert evenly_spaced(paths, 20) == paths
    assert [int(str(p)) for p in evenly_spaced(paths, 4)] == [0, 2, 5, 7]
    with pytest.raises(CalibrationError, match="--calibration-images 0: expected at least 1"):
        evenly_spaced(paths, 0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import cv2

    path = tmp_path_factory.mktemp("images")
    for i, image in enumerate(synthetic_images()[:2]):
        cv2.imwrite(str(path / f"{i}.png"), image[..., ::-1])  # OpenCV writes BGR
    return path


def test_ranges_are_those_of_the_deployed_preprocessing(exported: Exported, folder: Path) -> None:
    """The least and largest number of the normalised image follow from its bytes."""
    model, manifest = load_deployed(exported.model)
    made = calibrate(model, manifest, list_images(folder), progress=False)
    pre = manifest.preprocess
    canvases = [calibration_batch(image, manifest) for image in synthetic_images()[:2]]
    expected = [(canvas - np.array(pre.mean)) / np.array(pre.std) for canvas in canvases]
    first = next(node for node in cut_network(model).graph.node if node.op_type == "Conv").input[0]
    low, high = made.ranges["max"][first]
    assert low == pytest.approx(min(x.min() for x in expected), rel=1e-5)
    assert high == pytest.approx(max(x.max() for x in expected), rel=1e-5)


def test_ranges_are_those_of_all_numbers(exported: Exported, folder: Path) -> None:
    model, manifest = load_deployed(exported.model)
    made = calibrate(model, manifest, list_images(folder), progress=False)
    network = cut_network(model)
    name = [node.output[0] for node in network.graph.node if node.op_type == "Relu"][1]
    visible = onnx.ModelProto()
    visible.CopyFrom(network)
    visible.graph.output.extend(value for value in network.graph.value_info if value.name == name)
    session = open_session(visible)
    seen = [session.run([name], {"images": calibration_batch(p, manifest)})[0] for p in synthetic_images()[:2]]
    assert made.ranges["max"][name] == (0, max(float(values.max()) for values in seen))
    assert made.ranges.keys() == {"max", "mse", "percentile"}
    assert made.images == 2


def test_an_unreadable_image_is_skipped_and_named(exported: Exported, folder: Path, tmp_path: Path) -> None:
    model, manifest = load_deployed(exported.model)
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    made = calibrate(model, manifest, [*list_images(folder), broken], progress=False)
    assert made.images == 2
    assert len(made.skipped) == 1
    assert "broken.png" in made.skipped[0]
    with pytest.raises(CalibrationError, match=r"none of the 1 images could be read; the first: .*broken\.png"):
        calibrate(model, manifest, [broken], progress=False)


def test_a_cache_serves_only_what_it_was_made_of(exported: Exported, folder: Path, tmp_path: Path) -> None:
    model, manifest = load_deployed(exported.model)
    images, cache = list_images(folder), tmp_path / "ranges.json"
    made = calibrate_cached(model, manifest, images, cache, progress=False)
    assert load_calibration(cache) == made
    changed = json.loads(cache.read_text())
    changed["ranges"]["max"]["relu"] = [0, 123]
    cache.write_text(json.dumps(changed))
    again = calibrate_cached(model, manifest, images, cache, progress=False)
    assert again.ranges["max"]["relu"] == (0, 123)  # read, not measured
    with pytest.raises(CalibrationError, match="made of another graph"):
        calibrate_cached(model, dataclasses.replace(manifest, graph_sha256="0" * 64), images, cache)
    with pytest.raises(CalibrationError, match="made of other images than these 1"):
        calibrate_cached(model, manifest, images[:1], cache)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("no json", "not a calibration file"),
        ("[]", "not a calibration file of version 2"),
        ('{"version": 1}', "not a calibration file of version 2"),
        ('{"version": 2}', "field 'graph_sha256' is missing"),
        ('{"version": ' + "2" * 5000 + "}", "a number has too many digits"),
        ("[" * 100_000, "nested too deeply"),
        ('{"version": NaN}', "NaN is no number of JSON"),
        ('{"version": 2, "version": 2}', "the name 'version' occurs twice"),
    ],
)
def test_a_damaged_cache(content: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "ranges.json"
    path.write_text(content)
    with pytest.raises(CalibrationError, match=message):
        load_calibration(path)


def test_a_range_that_no_float_holds(tmp_path: Path) -> None:
    path = tmp_path / "ranges.json"
    fields = dataclasses.asdict(Calibration("0" * 64, "0" * 64, 1, (), {"max": {"x": (0.0, 1.0)}}, {}))
    for value in (10**400, 10**39, -(10**400)):
        fields["ranges"]["max"]["x"] = [0, value]
        path.write_text(json.dumps(fields))
        with pytest.raises(CalibrationError, match=r"field 'ranges\.max\.x\[1\]' is a number"):
            load_calibration(path)


def test_a_range_upside_down(tmp_path: Path) -> None:
    path = tmp_path / "ranges.json"
    bad = Calibration("0" * 64, "0" * 64, 1, (), {"max": {"x": (1.0, -1.0)}}, {})
    path.write_text(json.dumps(dataclasses.asdict(bad)))
    with pytest.raises(CalibrationError, match=r"expected rising ranges, but that of x is 1.0 to -1.0"):
        load_calibration(path)
