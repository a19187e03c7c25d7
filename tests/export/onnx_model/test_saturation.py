"""Sums of two 8-bit products: a file for every CPU never exceeds 16 bits, and what would is found."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from export.calibration import Calibration
from export.onnx_model.network import cut_network, load_deployed
from export.onnx_model.saturation import (
    LARGEST_SUM,
    PAIR_LIMIT,
    largest_sums,
    largest_sums_of_network,
    saturation_free_scales,
    sums_fit_16_bits,
)
from export.onnx_model.session import open_session
from export.quantization.convert import convert_model
from export.quantization.qdq import quantize_network
from export.quantization.scheme import Scheme
from export.verification.checks import KERNELS, NETWORK, SATURATES, SUMS, UNTRAINED, Verification
from export.verification.comparison import Comparison, Dense, check_sums, compare_case, open_model_file
from export.verification.conversion import open_conversion
from export.verification.equivalence import network_differences
from export.verification.images import Case, make_case, synthetic_images
from runtime.detections import Detections, RawOutputs
from runtime.machine.processor import Processor, read_processor

from ..conftest import Exported, restamp
from ..quantization.test_conversion_steps import X, convolutions, graph, ranges_of


def worst_pair(weights: np.ndarray, scales: np.ndarray) -> int:
    """By trying every two weights of every output channel, as written: with the largest byte, in 16 bits."""
    worst = 0
    for row, scale in zip(weights.reshape(len(weights), -1), scales, strict=True):
        steps = [int(np.rint(weight / scale)) if scale else 0 for weight in row]
        for i, one in enumerate(steps):
            for other in steps[i + 1 :] or [0]:
                worst = max(worst, abs(255 * one + 255 * other), abs(255 * one), abs(255 * other))
    return worst


def test_nothing_and_zeros() -> None:
    assert saturation_free_scales(np.zeros((2, 3)), 127).tolist() == [0, 0]
    assert saturation_free_scales(np.zeros((0, 3)), 127).shape == (0,)
    assert saturation_free_scales(np.array([[254.0]]), 127).tolist() == [2]  # no other weight to share the 16 bits with


@pytest.mark.parametrize("shape", [(8, 1, 3, 3), (8, 4, 1, 1), (5, 6, 3, 3)])
@pytest.mark.parametrize("seed", range(5))
def test_no_two_weights_saturate(shape: tuple[int, ...], seed: int) -> None:
    weights = np.random.default_rng(seed).standard_t(2, shape)
    scales = saturation_free_scales(weights, 127)
    assert worst_pair(weights, scales) <= LARGEST_SUM
    # Nor is a step wasted: with scales 2 % smaller, every channel of more than one weight's outlier would saturate.
    flat = np.abs(weights).reshape(len(weights), -1)
    for row, scale in zip(weights, scales, strict=True):
        if np.abs(row).max() / scale < 126:
            assert worst_pair(row[None], np.array([scale]) * 0.98) > LARGEST_SUM
    assert (flat.max(axis=1) / scales >= 63).all()  # seven bits at least


def test_an_outlier_keeps_eight_bits() -> None:
    """Alone of its sign, a weight has all of them; two equal ones share them."""
    lonely, twins = np.array([[10.0, 0.05, -3.0]]), np.array([[10.0, 10.0, -3.0]])
    assert 10 / saturation_free_scales(lonely, 127)[0] == pytest.approx(127, abs=0.5)
    assert 10 / saturation_free_scales(twins, 127)[0] == PAIR_LIMIT / 2


def test_the_limit_is_that_of_16_bits() -> None:
    """The sum is what `vpmaddubsw` would saturate at: one step more of a pair and it does."""
    assert 255 * PAIR_LIMIT < 2**15 <= 255 * (PAIR_LIMIT + 1)


def test_a_file_for_every_cpu_says_so_and_others_do_not(
    exported: Exported, converted: dict[str, Path], full_bits: Path
) -> None:
    for path, fits in ((converted["int8-cpu"], True), (full_bits, False), (converted["int8"], False)):
        model, manifest = load_deployed(path)
        assert manifest.sums_fit_16_bits is fits
        assert (max(largest_sums(model).values()) <= LARGEST_SUM) is fits
        assert len(largest_sums(model)) > 20
    for name in ("fp16", "fp8"):
        assert load_deployed(converted[name])[1].sums_fit_16_bits is None
        assert largest_sums(onnx.load(converted[name])) == {}


def test_one_weight_too_large_is_found(
    exported: Exported, converted: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A single step more on the largest of one channel."""
    model = onnx.load(converted["int8-cpu"])
    assert sums_fit_16_bits(model)
    name = next(v.name for v in model.graph.initializer if v.name.endswith("_quantized") and "layer2" in v.name)
    weight = next(v for v in model.graph.initializer if v.name == name)
    steps = numpy_helper.to_array(weight).copy()
    flat = steps.reshape(len(steps), -1)
    largest = np.argsort(-np.maximum(flat, 0), axis=1)[:, :2]
    pairs = np.take_along_axis(np.maximum(flat, 0), largest, axis=1).astype(int).sum(axis=1)
    channel = int(pairs.argmax())
    flat[channel, largest[channel, 0]] += PAIR_LIMIT + 1 - int(pairs[channel])
    weight.CopyFrom(numpy_helper.from_array(steps, name))
    assert not sums_fit_16_bits(model)
    found = check_sums(model)
    assert not found.passed
    assert found.worst == 255 * (PAIR_LIMIT + 1)
    comparison = open_conversion(exported.model, restamp(model, tmp_path / "large.onnx"))
    assert SUMS in [check.quantity for check in comparison.file_checks if not check.passed]
    print(Verification(tuple(comparison.file_checks)).table)
    assert SATURATES in capsys.readouterr().out


def test_the_most_negative_sum_counts_too() -> None:
    model = convolutions(2)
    quantized = quantize_network(model, ranges_of(model), "cpu")
    weight = next(v for v in quantized.graph.initializer if v.name == "w0_quantized")
    steps = np.full(numpy_helper.to_array(weight).shape, -64, np.int8)
    for value, expected in ((-64, 255 * 128), (-65, 255 * 129)):
        steps[0, 0, 0, 0] = value
        weight.CopyFrom(numpy_helper.from_array(steps, weight.name))
        assert max(largest_sums_of_network(quantized).values()) == expected


def test_saturating_sums_would_be_wrong_and_ours_are_not(exported: Exported, converted: dict[str, Path]) -> None:
    """The instruction spelled out in NumPy on a convolution's real weights: all 8 bits saturate, ours don't."""
    rng = np.random.default_rng(0)
    for name, saturates in (("int8-cpu", False), ("int8", True)):
        network = cut_network(onnx.load(converted[name]))
        weights = max(
            (v for v in network.graph.initializer if v.name.endswith("_quantized")), key=lambda v: np.prod(v.dims)
        )
        steps = numpy_helper.to_array(weights).reshape(weights.dims[0], -1).astype(np.int32)
        steps = -np.sort(-steps, axis=1)[:, : steps.shape[1] // 2 * 2]  # large ones beside large ones
        bytes_ = rng.integers(128, 256, steps.shape[1]).astype(np.int32)
        pairs = (steps * bytes_).reshape(len(steps), -1, 2).sum(axis=2)
        assert (np.clip(pairs, -(2**15), 2**15 - 1) != pairs).any() == saturates


def test_biases_make_up_for_rounded_weights() -> None:
    """The mean of each channel of a convolution's output is the float one's, once the means of its input are known."""
    rng = np.random.default_rng(4)
    given = (X + 5).astype(np.float32)
    constants = {"w": rng.normal(0, 0.3, (4, 4, 1, 1)).astype(np.float32), "b": np.zeros(4, np.float32)}
    constants["w"][:, 0] = 20  # an outlier of every channel, beside which the others are rounded coarsely
    nodes = [
        onnx.helper.make_node("Conv", ["x", "w", "b"], ["c"], "c"),
        onnx.helper.make_node("Conv", ["c", "last"], ["y"], "y"),
    ]
    model = graph(nodes, constants | {"last": np.ones((1, 4, 1, 1), np.float32)}, c=[1, 4, 8, 8], y=[1, 1, 8, 8])
    ranges = {"x": (0.0, float(given.max())), "c": (-200.0, 500.0)}
    means = {"x": given.mean(axis=(0, 2, 3)).tolist()}

    def channel_means(network: onnx.ModelProto) -> np.ndarray:
        network.graph.output.extend(v for v in network.graph.value_info if v.name == "c")
        return open_session(network).run(["c"], {"given": given})[0].mean(axis=(0, 2, 3))

    expected = channel_means(onnx.ModelProto.FromString(model.SerializeToString()))
    shift = [
        np.abs(channel_means(quantize_network(model, ranges, "cpu-vnni", means=known)) - expected).max()
        for known in ({}, means)
    ]
    assert shift[0] > 0.3
    assert shift[1] < 0.1 * shift[0]


def test_grouped_convolutions_are_corrected_by_their_own_inputs() -> None:
    """Against the sum written out, weight by weight."""
    rng = np.random.default_rng(3)
    weight = rng.normal(0, 0.3, (4, 1, 3, 3)).astype(np.float32)
    bias = rng.normal(0, 0.3, 4).astype(np.float32)
    nodes = [
        onnx.helper.make_node("Conv", ["x", "w", "b"], ["c"], "c", pads=[1, 1, 1, 1], group=4),
        onnx.helper.make_node("Conv", ["c", "last"], ["y"], "y"),
    ]
    constants = {"w": weight, "b": bias, "last": np.ones((1, 4, 1, 1), np.float32)}
    model = graph(nodes, constants, c=[1, 4, 8, 8], y=[1, 1, 8, 8])
    means = [0.5, -1.0, 2.0, 3.0]
    quantized = quantize_network(model, ranges_of(model), "cpu", means={"x": means})
    made = {v.name: numpy_helper.to_array(v) for v in quantized.graph.initializer}
    back = made["w_quantized"].astype(np.float64) * made["w_scale"][:, None, None, None]
    for channel in range(4):
        moved = sum((float(w) - float(r)) * means[channel] for w, r in zip(weight[channel].flat, back[channel].flat))  # noqa: B905
        assert made["c_bias"][channel] == pytest.approx(bias[channel] + moved, abs=1e-6)


def test_a_bias_that_is_no_correction_is_found(exported: Exported, calibration: Calibration, tmp_path: Path) -> None:
    """Moved by more than any means of its input could ask for."""
    source, manifest = load_deployed(exported.model)
    model = convert_model(source, manifest, Scheme("int8", "cpu"), calibration)
    assert network_differences(source, model, manifest.thresholds) == []
    name = next(v.name for v in model.graph.initializer if v.name.endswith("_bias"))
    bias = next(v for v in model.graph.initializer if v.name == name)
    moved = numpy_helper.to_array(bias).copy()
    moved[0] += 3
    bias.CopyFrom(numpy_helper.from_array(moved, name))
    (found,) = network_differences(source, model, manifest.thresholds)
    assert "1 of" in found


# What a failure points to.


def failed(comparison: Comparison) -> dict[str, str]:
    """What it says of each failed comparison of one batch."""
    checks = compare_case(comparison, make_case(2, (192, 224), synthetic_images(), (124, 116, 104)))
    return {check.quantity: check.detail for check in checks if not check.passed}


def test_kernels_that_compute_otherwise_are_told(exported: Exported, converted: dict[str, Path]) -> None:
    """A processor whose 8-bit sums are not those that the file asks for: every score is another."""
    comparison = open_conversion(exported.model, converted["int8-cpu"])
    assert not comparison.file.is_emulated
    backend, visible = comparison.file.backend, comparison.emulation

    def sure(scores: np.ndarray, factor: float) -> np.ndarray:
        """Ten sure detections: a hundred of an untrained detector are too much alike to be compared."""
        rows = np.zeros_like(scores)
        rows[:, :10] = factor * np.linspace(0.9, 0.6, 10)
        return rows

    class Kernels:
        def __init__(self, factor: float) -> None:
            self.factor = factor

        def infer(self, *arguments: object, **options: object) -> RawOutputs:
            raw = backend.infer(*arguments, **options)  # type: ignore[arg-type]
            return dataclasses.replace(
                raw,
                num_detections=np.full_like(raw.num_detections, 10),
                detection_scores=sure(raw.detection_scores, self.factor),
                nms_exact=np.ones_like(raw.nms_exact),
            )

    class Exact:
        def run(self, names: list[str], feed: dict[str, np.ndarray]) -> list[np.ndarray]:
            found = dict(zip(names, visible.run(names, feed), strict=True))
            ours = Kernels(1.0).infer(feed["images"], feed["image_sizes"])
            same = ("num_detections", "detection_boxes", "detection_scores", "detection_classes", "nms_exact")
            return [getattr(ours, name) if name in same else found[name] for name in names]

    for factor, told in ((1.0, None), (0.7, SATURATES)):
        file = comparison.file._replace(backend=Kernels(factor))  # type: ignore[arg-type]
        said = failed(comparison._replace(file=file, emulation=Exact()))  # type: ignore[arg-type]
        assert said.get(KERNELS) == told


def test_an_untrained_network_is_told(exported: Exported, converted: dict[str, Path]) -> None:
    """Where the float32 file's own scores are all but one number, 8 bits upset their order."""
    comparison = open_conversion(exported.model, converted["int8-cpu"])
    doubled = comparison._replace(reference=lambda case: [2 * dense for dense in comparison.reference(case)])

    def alike(case: Case, dense: Dense) -> list[Detections]:
        return comparison.postprocess(
            case, [0.01 * m if "class" in n else m for n, m in zip(comparison.dense_names, dense, strict=True)]
        )

    told = failed(doubled._replace(postprocess=alike))
    assert {told[quantity] for quantity in NETWORK.values()} == {UNTRAINED}


def test_what_saturates_here_is_compared_in_emulation(
    exported: Exported, converted: dict[str, Path], full_bits: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same verdict on a processor without VNNI; int8 for TensorRT is emulated everywhere."""
    assert open_model_file(converted["int8"]).is_emulated
    verdicts = []
    for features in ({"avx2"}, {"avx2", "avx512_vnni"}):
        processor = Processor("x86_64", "a processor", frozenset(features))
        monkeypatch.setattr("export.onnx_model.emulation.read_processor", lambda processor=processor: processor)
        monkeypatch.setattr("runtime.backends.saturation.read_processor", lambda processor=processor: processor)
        assert open_model_file(full_bits).is_emulated == ("avx512_vnni" not in features)
        assert not open_model_file(converted["int8-cpu"]).is_emulated
        if "avx512_vnni" not in features or read_processor().sums_8_bit_products_exactly:
            verdicts.append(failed(open_conversion(exported.model, full_bits)))
    assert verdicts == [{}] * len(verdicts)


OPENVINO = """
import sys
import numpy as np
from export.verification.images import make_case, synthetic_images
from runtime.backends import open_backend

case = make_case(2, (192, 224), synthetic_images(), (124, 116, 104))
for path in sys.argv[2:]:
    backend = open_backend(path, backend="openvino", threads=1, allow_saturation=True)
    raw = backend.infer(case.images, case.image_sizes, all_candidates=True)
    np.save(f"{path}.{sys.argv[1]}.npy", raw.candidate_scores)
"""


def test_real_kernels_without_vnni(converted: dict[str, Path], full_bits: Path, repository: Path) -> None:
    """OpenVINO's, kept from VNNI: they give the same numbers for a file of ours, and others for all 8 bits."""
    pytest.importorskip("openvino")
    if "avx512_vnni" not in read_processor().features:
        pytest.skip("needs AVX-512 with VNNI, of which oneDNN can be kept from the latter")
    files = [str(converted["int8-cpu"]), str(full_bits)]
    for limit in ("ALL", "AVX512_CORE"):  # the latter is all of AVX-512 but VNNI and what came after it
        subprocess.run(
            [sys.executable, "-c", OPENVINO, limit, *files],
            cwd=repository,
            env=os.environ | {"ONEDNN_MAX_CPU_ISA": limit},
            check=True,
            timeout=300,
        )
    ours, full = ([np.load(f"{file}.{limit}.npy") for limit in ("ALL", "AVX512_CORE")] for file in files)
    np.testing.assert_allclose(ours[0], ours[1], atol=1e-5)
    assert np.abs(full[0] - full[1]).max() > 0.01
