"""`python -m export.quantize`: what it writes and says, and bad input."""

from __future__ import annotations

import errno
import json
import re
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from export import export_step, quantize_step, to_onnx
from export.calibration import CalibrationError, load_calibration
from export.onnx_model.network import load_deployed
from export.onnx_model.precision import convolution_precisions, read_quantization_note
from export.quantization.convert import convert_file, convert_model
from export.quantization.scheme import Scheme
from export.quantize import main
from export.verification.checks import Check
from runtime.coco.results import results_of_image
from runtime.detector import Detector
from runtime.errors import UserError
from runtime.files import WriteError
from runtime.images import decode

from ...support.blocked import run_without
from ..conftest import Exported, restamp


@pytest.fixture(scope="session")
def folder(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images to calibrate on, one of them unreadable."""
    path = tmp_path_factory.mktemp("some broken")
    for image in images.glob("*.png"):
        shutil.copy(image, path)
    (path / "broken.jpg").write_bytes(b"\xff\xd8\xff no image")
    return path


def test_the_command(exported: Exported, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "mine.onnx"
    source.write_bytes(exported.model.read_bytes())
    arguments = [str(source), "--precision", "int8", "--images", str(folder)]
    assert main(arguments) == 0
    said = capsys.readouterr()
    assert "1 images could not be read" in said.err
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


def test_ranges_that_do_not_fit_are_refused_where_they_were_named_and_measured_anew_where_not(
    exported: Exported, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As after more training, or an export for other canvases: to a file of the same name."""
    source, cache = tmp_path / "mine.onnx", tmp_path / "mine.calibration.json"
    source.write_bytes(exported.model.read_bytes())
    arguments = [str(source), "--precision", "int8", "--images", str(images)]
    assert main([*arguments, "--calibration-images", "1"]) == 0
    assert main([*arguments, "--calibration-images", "2"]) == 0
    capsys.readouterr()
    before = load_calibration(cache)
    model = onnx.load(exported.model)
    model.graph.node[0].name = "another"
    restamp(model, source)
    with pytest.raises(CalibrationError, match=r"mine\.calibration\.json: made of another graph .*; delete it"):
        main([*arguments, "--calibration-images", "2", "--calibration", str(cache)])
    assert load_calibration(cache) == before
    assert main([*arguments, "--calibration-images", "2"]) == 0
    assert re.search(r"mine\.calibration\.json: made of another graph .*; calibrating again\n", capsys.readouterr().out)
    after = load_calibration(cache)
    assert (after.graph_sha256, after.images) == (load_deployed(source)[1].graph_sha256, 2)
    assert after.ranges == before.ranges
    with pytest.raises(CalibrationError, match="other images than these 1; delete it"):
        main([*arguments, "--calibration-images", "1", "--calibration", str(cache)])


def test_a_file_that_differs_is_not_written(
    exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = convert_model

    def broken(*arguments: object) -> onnx.ModelProto:
        model = real(*arguments)  # type: ignore[arg-type]
        weight = next(v for v in model.graph.initializer if len(v.dims) == 4)
        weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * np.float16(1.5), weight.name))
        path = restamp(model, tmp_path / "scratch.onnx")
        return onnx.load(path)

    monkeypatch.setattr(quantize_step, "convert_model", broken)
    out = tmp_path / "out.onnx"
    out.write_text("what stood there before")
    assert main([str(exported.model), "--precision", "fp16", "-o", str(out)]) == 1
    assert out.read_text() == "what stood there before"
    assert (tmp_path / "out.failed.onnx").exists()
    assert "NOT written" in capsys.readouterr().out


@pytest.fixture
def compared_on(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The greys of the images of the last comparison of a conversion, which always passes."""
    greys: list[int] = []

    def note(source: Path, path: Path, images: Sequence[np.ndarray]) -> list[Check]:
        greys[:] = [int(image[0, 0, 0]) for image in images]
        return []

    monkeypatch.setattr(quantize_step, "verify_conversion", note)
    return greys


def greys(folder: Path, numbers: Iterable[int]) -> Path:
    """A folder of images, each of its number's grey."""
    folder.mkdir()
    for number in numbers:
        cv2.imwrite(str(folder / f"{number}.png"), np.full((192, 256, 3), number, np.uint8))
    return folder


def test_compared_on_images_that_were_not_calibrated_on(
    exported: Exported, tmp_path: Path, compared_on: list[int]
) -> None:
    """Ranges enclose what they were measured on. Of six images every other is; of as many as there are, each is."""
    folder, ranges = greys(tmp_path / "images", range(10, 16)), tmp_path / "ranges.json"
    arguments = [str(exported.model), "--images", str(folder), "-o", str(tmp_path / "out.onnx")]
    quantized = [*arguments, "--precision", "int8", "--calibration", str(ranges)]
    assert main([*quantized, "--calibration-images", "3"]) == 0
    assert compared_on == [11, 13, 15]
    ranges.unlink()
    assert main([*quantized, "--calibration-images", "5"]) == 0
    assert compared_on == [15]
    ranges.unlink()
    assert main(quantized) == 0
    assert compared_on == [10, 11, 12]
    assert main([*arguments, "--precision", "fp16"]) == 0
    assert compared_on == [10, 11, 12]
    assert main([str(exported.model), "--precision", "fp16", "-o", str(tmp_path / "out.onnx")]) == 0
    assert compared_on == []  # synthetic ones, by `verify`


def test_the_way_from_the_checkpoint_compares_conversions_on_its_images(
    exported: Exported, tmp_path: Path, compared_on: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of --images, others than of --calibrate-on; the validation's where none are named."""
    shown, trained = greys(tmp_path / "shown", (20, 21)), greys(tmp_path / "trained", (30, 31))
    data = replace(exported.loaded.config.data, val_images=str(greys(tmp_path / "val", (40,))))
    loaded = exported.loaded._replace(config=replace(exported.loaded.config, data=data))
    monkeypatch.setattr("train.checkpoint.load_detector", lambda _: loaded)
    monkeypatch.setattr(export_step, "checkpoint_to_graph", lambda *_: exported.model.read_bytes())
    monkeypatch.setattr(export_step, "verify_export", lambda *_: [])
    arguments = [str(exported.checkpoint), "-o", str(tmp_path / "model.onnx")]
    for precision in ("fp16", "bf16"):
        assert to_onnx.main([*arguments, "--precision", precision, "--images", str(shown)]) == 0
        assert compared_on == [20, 21]
        assert to_onnx.main([*arguments, "--precision", precision]) == 0
        assert compared_on == [40]
    int8 = [*arguments, "--precision", "int8", "--calibrate-on", str(trained)]
    assert to_onnx.main([*int8, "--images", str(shown)]) == 0
    assert compared_on == [20, 21]
    assert to_onnx.main(int8) == 0
    assert compared_on == [40]


def own_detections(model: Path, images: Path, path: Path) -> Path:
    """A COCO file in which a model's best detections are the truth, so that its own AP is about 1."""
    listed, annotations = [], []
    with Detector(model, backend="cpu") as detector:
        manifest = detector.manifest
        for number, file in enumerate(sorted(images.glob("*.png")), 1):
            height, width = decode(file).shape[:2]
            listed.append({"id": number, "file_name": file.name, "height": height, "width": width})
            found = results_of_image(number, detector(file), manifest.category_ids)
            for row in found[:20]:
                area = row["bbox"][2] * row["bbox"][3]
                annotations.append({"id": len(annotations) + 1, "iscrowd": 0, "area": area, **row})
    categories = [{"id": i, "name": n} for i, n in zip(manifest.category_ids, manifest.classes, strict=True)]
    path.write_text(json.dumps({"images": listed, "annotations": annotations, "categories": categories}))
    return path


def test_blocks_stay_in_float_until_the_loss_is_met(
    exported: Exported, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A loss that any file meets, then one that needs blocks in float; the trade is printed, the file says which."""
    truth, out = own_detections(exported.model, images, tmp_path / "val.json"), tmp_path / "out.onnx"
    arguments = [str(exported.model), "--precision", "int8", "--target", "cpu", "--images", str(images)]
    arguments += ["--annotations", str(truth), "--calibration", str(tmp_path / "ranges.json"), "-o", str(out)]
    assert main([*arguments, "--max-ap-loss", "100"]) == 0
    said = capsys.readouterr().out
    trade = said[said.index("blocks in float") :].splitlines()
    assert trade[0].split() == ["blocks", "in", "float", "AP", "loss", "MB", "×", "fp32"]
    assert trade[2].split()[:2] == ["0", "of"]
    assert trade[2].endswith("← chosen")
    loss = float(trade[2].split()[4])
    assert loss > 1  # an untrained network's detections are upset by little
    note = read_quantization_note(onnx.load(out))
    assert note is not None
    assert note.in_float == ()

    assert main([*arguments, "--max-ap-loss", str(loss / 2)]) == 0
    said = capsys.readouterr().out
    chosen = next(line for line in said.splitlines() if line.endswith("← chosen"))
    assert int(chosen.split()[0]) > 0
    assert float(chosen.split()[4]) <= loss / 2
    note = read_quantization_note(onnx.load(out))
    assert note is not None
    assert len(note.in_float) >= int(chosen.split()[0])
    kinds = convolution_precisions(onnx.load(out))
    assert {kinds[name] for name in note.in_float} == {"fp32"}
    assert "in float: " in said


def test_bad_input_gets_one_line(exported: Exported, converted: dict[str, Path], folder: Path, tmp_path: Path) -> None:
    model = onnx.load(exported.model)
    garbage, foreign, old = tmp_path / "garbage.onnx", tmp_path / "foreign.onnx", tmp_path / "old.onnx"
    garbage.write_bytes(b"\xff\xfe no protobuf at all" * 9)
    checkpoint = tmp_path / "last.pt"
    checkpoint.write_bytes(garbage.read_bytes())
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
        ([str(converted["int8"]), "--precision", "fp16"], "already int8; a conversion starts from the float32 file"),
        ([source, "--precision", "int8"], "needs images to calibrate on: give --images DIR"),
        ([source, "--precision", "int8", "--images", str(empty)], "no images there"),
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
        ([str(checkpoint), "--precision", "fp16"], "checkpoint must be exported first: python -m export.to_onnx"),
    ):
        with pytest.raises(UserError, match=message) as caught:
            main(arguments)
        assert len(str(caught.value).splitlines()) == 1


def test_a_conversion_needs_no_torch(exported: Exported, images: Path, repository: Path, tmp_path: Path) -> None:
    """A deployment machine makes its own int8 of the float32 file, and compares the two."""
    training, out = "torch torchvision onnxscript openvino timm tyro tensorboard matplotlib", str(tmp_path / "out.onnx")
    arguments = ["--precision", "int8", "--target", "cpu", "--images", str(images), "-o", out]
    arguments += ["--calibration", str(tmp_path / "ranges.json")]
    made = run_without(training, repository, str(exported.model), *arguments, module="export.quantize")
    assert (made.returncode, made.stderr) == (0, "")
    again = [str(exported.model), out, "--images", str(images)]
    compared = run_without(training, repository, *again, module="export.verify")
    assert (compared.returncode, compared.stderr) == (0, "")
    assert compared.stdout.splitlines()[-1].endswith("none beyond the limit")


@pytest.mark.parametrize("library", ["onnx", "onnxruntime"])
def test_a_library_that_a_conversion_needs_gets_one_line(library: str, repository: Path) -> None:
    command = run_without(library, repository, "model.onnx", "--precision", "int8", module="export.quantize")
    assert command.returncode == 2
    assert command.stderr == (
        f"error: {library} is not installed; a conversion reads the file and measures ranges with them: "
        f"pip install {library}\n"
    )


def test_a_full_disk_leaves_nothing(exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Path, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device", str(self))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(WriteError, match="No space left on device; free some space"):
        convert_file(exported.model, tmp_path / "out.onnx", Scheme("fp16"))
    assert list(tmp_path.iterdir()) == []
