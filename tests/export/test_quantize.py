"""Files in other precisions: what they hold, what they detect, and that a wrong one is caught."""

from __future__ import annotations

import errno
import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from export import quantize as quantize_module
from export.calibration import Calibration, CalibrationError, Histogram, calibrate
from export.compare import without_partner
from export.convert import ConvertError, Scheme, converted_model
from export.layers import convolutions, quantization, wrong_convolutions
from export.network import ModelError, ahead_of, cut_network, dense_maps, load_deployed, with_network
from export.onnx_file import graph_sha256
from export.pictures import make_case, synthetic_pictures
from export.quantize import convert, main
from export.verify import CANDIDATES, DETECTIONS, NETWORK, PRECISION, RERUN, ROWS, Check, compare, open_conversion
from runtime.backends import BackendError
from runtime.backends.ort import OrtBackend
from runtime.backends.ov import shared_core
from runtime.errors import UserError
from runtime.files import WriteError
from runtime.manifest import METADATA_KEY, from_json, to_json

from .conftest import Exported, restamp

PAD = (124, 116, 104)
SCHEMES = {
    "fp16": Scheme("fp16"),
    "bf16": Scheme("bf16"),
    "int8": Scheme("int8"),
    "int8 for CPUs": Scheme("int8", "cpu"),
    "fp8": Scheme("fp8"),
}


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures to calibrate on, one of them unreadable."""
    path = tmp_path_factory.mktemp("pictures")
    for i, picture in enumerate(synthetic_pictures()):
        cv2.imwrite(str(path / f"{i}.png"), picture)
    (path / "broken.jpg").write_bytes(b"\xff\xd8\xff no picture")
    return path


@pytest.fixture(scope="session")
def calibration(exported: Exported, folder: Path) -> Calibration:
    model, manifest = load_deployed(exported.model)
    return calibrate(model, manifest, sorted(folder.iterdir()), progress=False)


@pytest.fixture(scope="session")
def files(exported: Exported, calibration: Calibration) -> dict[str, Path]:
    """The exported file in every precision."""
    paths = {}
    for name, scheme in SCHEMES.items():
        paths[name] = exported.model.with_name(f"{name}.onnx")
        convert(exported.model, paths[name], scheme.precision, calibration, target=scheme.target)
    return paths


def checks_of(exported: Exported, path: Path) -> list[Check]:
    pair = open_conversion(exported.model, path)
    return [pair.precision, *compare(pair, make_case(2, (192, 224), synthetic_pictures(), PAD))]


def failing(exported: Exported, path: Path) -> set[str]:
    return {check.quantity for check in checks_of(exported, path) if not check.passed}


def test_the_network_is_cut_out_and_put_back(exported: Exported) -> None:
    """Nothing is lost: the joined model has the same nodes and gives the same numbers to the last bit."""
    model, _ = load_deployed(exported.model)
    network = cut_network(model)
    onnx.checker.check_model(network, full_check=True)
    assert [value.name for value in network.graph.input] == ["images"]
    assert [value.name for value in network.graph.output] == dense_maps(model)
    joined = with_network(model, network)
    assert sorted(n.SerializeToString() for n in joined.graph.node) == sorted(
        n.SerializeToString() for n in model.graph.node
    )
    assert {value.name for value in joined.graph.initializer} == {value.name for value in model.graph.initializer}


def test_a_network_that_lacks_an_output_is_not_put_back(exported: Exported) -> None:
    model, _ = load_deployed(exported.model)
    network = cut_network(model)
    for node in network.graph.node:
        for i, name in enumerate(node.output):
            if name == "class_logits_1":
                node.output[i] = "renamed"
    with pytest.raises(ValueError, match="lacks class_logits_1, which the postprocessing reads"):
        with_network(model, network)


@pytest.mark.parametrize("name", SCHEMES)
def test_a_file_is_what_it_says(name: str, files: dict[str, Path], exported: Exported) -> None:
    model, manifest = load_deployed(files[name])  # the hash fits
    _, before = load_deployed(exported.model)
    assert manifest == replace(
        before,
        precision=SCHEMES[name].precision,
        graph_sha256=graph_sha256(model),
        libraries=manifest.libraries,
        ap=None,
    )
    assert before.ap == 0.25  # which was measured on the float32 file
    assert manifest.libraries.keys() >= {"torch", "onnx", "ml_dtypes"}
    last = 3 * 5  # of three kinds, on five levels
    everything = convolutions(onnx.load(exported.model)).total()
    expected = {
        "fp16": {"fp16": everything},
        "bf16": {"bf16": everything},
        "int8": {"int8": everything - last, "fp16": last},
        "int8 for CPUs": {"uint8": everything - last, "fp32": last},
        "fp8": {"fp8": everything - last, "fp16": last},
    }
    assert convolutions(model) == expected[name]
    assert [entry.version for entry in model.opset_import] == [22 if name == "bf16" else 21]


@pytest.mark.parametrize("name", SCHEMES)
def test_postprocessing_is_untouched(name: str, files: dict[str, Path], exported: Exported) -> None:
    """Node for node and constant for constant, and it reads float32 maps under the same names."""
    before, after = onnx.load(exported.model), onnx.load(files[name])
    sides = []
    for model in (before, after):
        network = {node.output[0] for node in ahead_of(model.graph.node, dense_maps(model))}
        rest = [node for node in model.graph.node if node.output[0] not in network]
        read = {name for node in rest for name in node.input}
        constants = {v.name: v.SerializeToString() for v in model.graph.initializer if v.name in read}
        sides.append(([node.SerializeToString() for node in rest], constants))
    assert sides[0] == sides[1]
    types = {value.name: value.type.tensor_type.elem_type for value in after.graph.value_info}
    assert {types[name] for name in dense_maps(after)} == {TensorProto.FLOAT}
    assert list(after.graph.output) == list(before.graph.output)


@pytest.mark.parametrize("name", SCHEMES)
def test_every_precision_passes(name: str, files: dict[str, Path], exported: Exported) -> None:
    checks = checks_of(exported, files[name])
    assert [check for check in checks if not check.passed] == []
    assert all(check.compared for check in checks)


def test_more_bits_err_less(files: dict[str, Path], exported: Exported) -> None:
    errors = {
        name: max(check.worst for check in checks_of(exported, files[name]) if check.quantity in NETWORK.values())
        for name in SCHEMES
    }
    assert 0 < 4 * errors["fp16"] < errors["bf16"] < errors["int8"] < errors["fp8"]
    assert errors["int8 for CPUs"] < errors["int8"]  # all 256 steps serve what a ReLU leaves


@pytest.mark.parametrize("name", ["fp16", "int8", "int8 for CPUs"])
def test_one_file_serves_all_batches_and_canvases(name: str, files: dict[str, Path], exported: Exported) -> None:
    pair = open_conversion(exported.model, files[name])
    for batch, canvas_hw in ((1, (64, 96)), (5, (192, 160)), (1, (320, 64))):
        checks = compare(pair, make_case(batch, canvas_hw, synthetic_pictures(), PAD))
        assert [c for c in checks if not c.passed and c.quantity in (CANDIDATES, ROWS, RERUN)] == []
        assert all(np.isfinite(check.worst) for check in checks)


@pytest.mark.parametrize("name", ["fp16", "int8", "int8 for CPUs"])
def test_batch_equals_singles(name: str, files: dict[str, Path]) -> None:
    backend = OrtBackend(files[name])
    case = make_case(3, (192, 256), synthetic_pictures(), PAD)
    together = backend.infer(case.images, case.image_sizes)
    for i in range(3):
        alone = backend.infer(case.images[i : i + 1], case.image_sizes[i : i + 1])
        np.testing.assert_allclose(alone.detection_scores[0], together.detection_scores[i], atol=5e-3)


@pytest.mark.parametrize("name", ["fp32", "fp16", "int8", "int8 for CPUs"])
def test_openvino_detects_the_same(name: str, files: dict[str, Path], exported: Exported) -> None:
    """An independent reader of the same file. It rounds halves and 8 bits at other places of the graph than ONNX
    Runtime does, which a network without training amplifies: the tolerance is that of the precision."""
    pytest.importorskip("openvino")
    from export.tolerance import TOLERANCES
    from runtime.detections import RawOutputs, finish

    path = exported.model if name == "fp32" else files[name]
    backend = OrtBackend(path)
    tolerance = TOLERANCES[backend.manifest.precision]
    compiled = shared_core().compile_model(
        str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    )
    case = make_case(2, (192, 256), synthetic_pictures(), PAD)
    found = compiled({"images": case.images, "image_sizes": case.image_sizes})
    raw = RawOutputs(*(found[output.name] for output in onnx.load(path).graph.output))
    limits = backend.manifest.thresholds
    theirs, ours = finish(raw, limits), finish(backend.infer(case.images, case.image_sizes), limits)
    assert sum(map(len, ours)) > 100
    for a, b in zip(ours, theirs, strict=True):
        alone = without_partner(a, b, tolerance.same) + without_partner(b, a, tolerance.same)
        assert alone <= 1 + tolerance.unmatched * (len(a) + len(b))


# What must be caught.


def test_an_unquantized_file_that_claims_int8(exported: Exported, tmp_path: Path) -> None:
    assert PRECISION in failing(exported, claiming("int8", exported.model, tmp_path))


def test_an_int8_file_that_claims_fp16(files: dict[str, Path], exported: Exported, tmp_path: Path) -> None:
    assert PRECISION in failing(exported, claiming("fp16", files["int8"], tmp_path))


def test_an_fp16_file_that_claims_fp32(files: dict[str, Path], exported: Exported, tmp_path: Path) -> None:
    assert PRECISION in failing(exported, claiming("fp32", files["fp16"], tmp_path))


def test_a_note_excuses_only_what_was_kept_in_float(
    files: dict[str, Path], calibration: Calibration, exported: Exported
) -> None:
    model, manifest = load_deployed(exported.model)
    kept = sorted(n for n, kind in by_output(files["int8"]).items() if kind == "int8")
    some = converted_model(model, manifest, Scheme("int8"), calibration, kept[:3])
    assert wrong_convolutions(some, "int8") == 0
    assert convolutions(some)["int8"] == len(kept) - 3
    note = quantization(some)
    assert note is not None
    assert note.in_float == tuple(kept[:3])
    del some.metadata_props[1:]
    assert wrong_convolutions(some, "int8") == 3
    nothing = converted_model(model, manifest, Scheme("int8"), calibration, kept)
    assert wrong_convolutions(nothing, "int8") == len(kept)  # quantized in name only


def by_output(path: Path) -> dict[str, str]:
    from export.layers import convolutions_by_output

    return convolutions_by_output(onnx.load(path))


@pytest.mark.parametrize("name", SCHEMES)
def test_swapped_levels(name: str, files: dict[str, Path], exported: Exported, tmp_path: Path) -> None:
    """Two maps change places, of two sizes on most canvases and of one size on the smallest."""
    model = onnx.load(files[name])
    swap = {"class_logits_3": "class_logits_4", "class_logits_4": "class_logits_3"}
    for node in model.graph.node:
        for i, output in enumerate(node.output):
            node.output[i] = swap.get(output, output)
    sort_nodes(model)
    path = restamp(model, tmp_path / "swapped.onnx")
    with pytest.raises(BackendError, match="ONNX Runtime failed"):
        failing(exported, path)
    if SCHEMES[name].is_quantized:
        return  # the one cell of each map differs less, in a network without training, than 8 bits may err
    smallest = compare(open_conversion(exported.model, path), make_case(2, (64, 64), synthetic_pictures(), PAD))
    assert NETWORK["class_logits"] in {check.quantity for check in smallest if not check.passed}


@pytest.mark.parametrize("name", ["fp16", "int8", "fp8"])
def test_a_saturated_convolution(name: str, files: dict[str, Path], exported: Exported, tmp_path: Path) -> None:
    """One convolution's sums leave float16's range, as a checkpoint's may."""
    model = onnx.load(files[name])
    last = [v for v in model.graph.initializer if v.data_type == TensorProto.FLOAT16 and len(v.dims) == 4][-1]
    array = numpy_helper.to_array(last)
    last.CopyFrom(numpy_helper.from_array(np.full_like(array, 60000), last.name))
    assert failing(exported, restamp(model, tmp_path / "saturated.onnx")) & set(NETWORK.values())


@pytest.mark.parametrize("name", ["int8", "int8 for CPUs"])
def test_a_scale_that_is_too_small(name: str, files: dict[str, Path], exported: Exported, tmp_path: Path) -> None:
    """A value is clipped at a twentieth of its range."""
    model = onnx.load(files[name])
    pair = next(n for n in model.graph.node if n.op_type == "QuantizeLinear" and "relu" in n.input[0])
    scale = next(v for v in model.graph.initializer if v.name == pair.input[1])
    scale.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(scale) / 20, scale.name))
    assert {*NETWORK.values(), DETECTIONS} & failing(exported, restamp(model, tmp_path / "clipped.onnx"))


def claiming(precision: str, path: Path, folder: Path) -> Path:
    """The file under the name of another precision, its hash in order."""
    model = onnx.load(path)
    entry = next(entry for entry in model.metadata_props if entry.key == METADATA_KEY)
    entry.value = to_json(replace(from_json(entry.value, "test"), precision=precision))  # type: ignore[arg-type]
    out = folder / "claim.onnx"
    out.write_bytes(model.SerializeToString())
    return out


def sort_nodes(model: onnx.ModelProto) -> None:
    """Put nodes into an order in which each follows what it reads."""
    made = {value.name for value in (*model.graph.input, *model.graph.initializer)} | {""}
    waiting = [onnx.NodeProto.FromString(node.SerializeToString()) for node in model.graph.node]
    ordered = []
    while waiting:
        ready = [node for node in waiting if made.issuperset(node.input)]
        assert ready
        for node in ready:
            made.update(node.output)
        ordered += ready
        waiting = [node for node in waiting if not made.issuperset(node.output)]
    del model.graph.node[:]
    model.graph.node.extend(ordered)


# The command, and bad input.


def test_the_command(exported: Exported, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "mine.onnx"
    source.write_bytes(exported.model.read_bytes())
    arguments = [str(source), "--precision", "int8", "--images", str(folder)]
    assert main(arguments) == 0
    said = capsys.readouterr()
    assert "1 pictures could not be read" in said.err
    assert "broken.jpg" in said.err
    assert said.out.splitlines()[-3].endswith("comparisons, none beyond the limit")
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "mine.calibration.json",
        "mine.int8.onnx",
        "mine.onnx",
    ]
    first = (tmp_path / "mine.int8.onnx").read_bytes()
    assert main([*arguments, "-o", str(tmp_path / "again.onnx")]) == 0
    assert (tmp_path / "again.onnx").read_bytes() == first  # from the cache, byte for byte
    with pytest.raises(CalibrationError, match="other pictures than these 2"):
        main([*arguments, "--calibration-images", "2"])


def test_a_file_that_differs_is_not_written(
    exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = converted_model

    def broken(*arguments: object) -> onnx.ModelProto:
        model = real(*arguments)  # type: ignore[arg-type]
        weight = next(v for v in model.graph.initializer if len(v.dims) == 4)
        weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * np.float16(1.5), weight.name))
        path = restamp(model, tmp_path / "scratch.onnx")
        return onnx.load(path)

    monkeypatch.setattr(quantize_module, "converted_model", broken)
    out = tmp_path / "out.onnx"
    out.write_text("what stood there before")
    assert main([str(exported.model), "--precision", "fp16", "-o", str(out)]) == 1
    assert out.read_text() == "what stood there before"
    assert (tmp_path / "out.failed.onnx").exists()
    assert "NOT written" in capsys.readouterr().out


def test_bad_input_gets_one_line(exported: Exported, files: dict[str, Path], folder: Path, tmp_path: Path) -> None:
    model = onnx.load(exported.model)
    garbage, foreign, old = tmp_path / "garbage.onnx", tmp_path / "foreign.onnx", tmp_path / "old.onnx"
    garbage.write_bytes(b"\xff\xfe no protobuf at all" * 9)
    node = onnx.helper.make_node("Relu", ["x"], ["y"])
    values = [onnx.helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy"]
    onnx.save(onnx.helper.make_model(onnx.helper.make_graph([node], "g", values[:1], values[1:])), foreign)
    model.opset_import[0].version = 17
    restamp(model, old)
    outside = tmp_path / "outside.onnx"
    onnx.save(onnx.load(exported.model), outside, save_as_external_data=True, location="weights.bin", size_threshold=0)
    changed = onnx.load(exported.model)
    changed.graph.node[0].name += "x"
    onnx.save(changed, tmp_path / "changed.onnx")
    empty = tmp_path / "empty"
    empty.mkdir()
    file = tmp_path / "file"
    file.write_text("")
    source = str(exported.model)
    for arguments, message in (
        ([str(tmp_path / "missing.onnx"), "--precision", "fp16"], "cannot read .*missing.onnx: No such file"),
        ([str(garbage), "--precision", "fp16"], "not an ONNX file, or cut short"),
        ([str(foreign), "--precision", "fp16"], "not a file that this toolkit exported"),
        ([str(old), "--precision", "fp16"], "opset 17, expected 21 or 22"),
        ([str(outside), "--precision", "fp16"], "weights lie in other files"),
        ([str(tmp_path / "changed.onnx"), "--precision", "fp16"], "changed after its export"),
        ([str(files["int8"]), "--precision", "fp16"], "already int8; a conversion starts from the float32 file"),
        ([source, "--precision", "int8"], "needs pictures to calibrate on: give --images DIR"),
        ([source, "--precision", "int8", "--images", str(empty)], "no pictures there"),
        ([source, "--precision", "int8", "--images", str(tmp_path / "no")], "no such folder"),
        ([source, "--precision", "fp16", "-o", source], "expected another file"),
        ([source, "--precision", "fp16", "-o", "model.engine"], "ends in .onnx"),
        ([source, "--precision", "fp16", "-o", str(file / "out.onnx")], "cannot write"),
        ([source, "--precision", "fp16", "--max-ap-loss", "1"], "expected points of AP, 0 or more, and int8 or fp8"),
        ([source, "--precision", "int8", "--images", str(folder), "--max-ap-loss", "1"], "give --val-annotations JSON"),
        (
            [
                source,
                "--precision",
                "fp8",
                "--target",
                "cpu",
                "--images",
                str(folder),
                "--calibration",
                str(tmp_path / "c"),
            ],
            "no CPU computes in it",
        ),
    ):
        with pytest.raises(UserError, match=message) as caught:
            main(arguments)
        assert len(str(caught.value).splitlines()) == 1


def test_a_full_disk_leaves_nothing(exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Path, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device", str(self))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(WriteError, match="No space left on device; free some space"):
        convert(exported.model, tmp_path / "out.onnx", "fp16")
    assert list(tmp_path.iterdir()) == []


def test_conversions_that_make_no_sense(exported: Exported, calibration: Calibration, tmp_path: Path) -> None:
    with pytest.raises(ConvertError, match="int8 needs a calibration"):
        convert(exported.model, tmp_path / "out.onnx", "int8")
    with pytest.raises(ConvertError, match="that already"):
        convert(exported.model, tmp_path / "out.onnx", "fp32")
    with pytest.raises(CalibrationError, match="made of another graph"):
        convert(exported.model, tmp_path / "out.onnx", "int8", replace(calibration, graph_sha256="0" * 64))


def test_a_weight_beyond_float16_is_named(exported: Exported, tmp_path: Path) -> None:
    model = onnx.load(exported.model)
    weight = next(v for v in model.graph.initializer if len(v.dims) == 4)
    array = numpy_helper.to_array(weight).copy()
    array.flat[0] = 1e5
    weight.CopyFrom(numpy_helper.from_array(array, weight.name))
    path = restamp(model, tmp_path / "large.onnx")
    with pytest.raises(ModelError, match=rf"{weight.name} holds 1e\+05, beyond the range of fp16; use bf16"):
        convert(path, tmp_path / "out.onnx", "fp16")
    convert(path, tmp_path / "out.onnx", "bf16")


def test_the_note_of_a_quantization(files: dict[str, Path], calibration: Calibration) -> None:
    note = quantization(onnx.load(files["int8 for CPUs"]))
    assert note is not None
    assert (note.target, note.method, note.images, note.in_float) == ("cpu", "max", 3, ())
    assert note.images_sha256 == calibration.images_sha256
    assert quantization(onnx.load(files["fp16"])) is None
    model = onnx.load(files["int8"])
    model.metadata_props[1].value = json.dumps({"target": "cpu"})
    assert quantization(model) is None


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_calibration_refuses_values_that_are_not_finite(value: float) -> None:
    seen = Histogram()
    seen.add(np.array([1.0, -2.0], np.float32))
    with pytest.raises(CalibrationError, match="not finite"):
        seen.add(np.array([1.0, value, 3.0], np.float32))
