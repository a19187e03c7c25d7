"""What can be said of an engine without a GPU, and the comparison of one that runs, on a stand-in for it."""

from __future__ import annotations

import dataclasses
import json
import shutil
import struct
from pathlib import Path

import numpy as np
import onnx
import pytest

from export.onnx_model.network import load_deployed
from export.trt.inspector import convolutions_by_precision, inspect_convolutions, precision_problem
from export.trt.settings import BuildError
from export.verification.checks import CANDIDATES, DETECTIONS, NETWORK, ROWS
from export.verification.comparison import VerifyError, open_model_file
from export.verification.engine import ENGINE_CANDIDATES, compare_candidates, engine_cases, verify_engine
from export.verification.engine_header import Header, header_problems, read_header
from export.verification.images import make_case, synthetic_images
from export.verification.tolerance import TOLERANCES
from export.verify import main
from runtime.backends.engine_file import EngineError, EngineManifest, Profile, read_description, write_engine
from runtime.backends.ort.backend import OrtBackend
from runtime.files import sha256_file
from runtime.manifest import Precision

from ..conftest import Exported, restamp
from .test_verify import change_constants

SHAPES = Profile((1, 64, 64), (2, 96, 128), (3, 128, 96 + 32))


def rtx_bytes(version: tuple[int, int, int, int] = (1, 7, 1, 116), mask: int = 0b100, padding: int = 100) -> bytes:
    """Bytes with the header that engines of TensorRT for RTX have."""
    size = 36 + padding
    return struct.pack("<4s12xQ4B4xI", b"vtrt", size, *version, mask) + bytes(padding)


def describe(exported: Exported, source: Path, data: bytes, **changes: object) -> EngineManifest:
    from hashlib import sha256

    described = EngineManifest(
        manifest=load_deployed(exported.model)[1],
        flavor="rtx",
        library_version="1.7.1.116",
        compute_capabilities=("8.6",),
        platform="linux-x86_64",
        engine_sha256=sha256(data).hexdigest(),
        onnx_sha256=sha256_file(source),
        profiles=(SHAPES,),
        tensors=(),
        rebuild="python -m export.to_trt model.onnx -o model.engine",
        layers={},
    )
    return dataclasses.replace(described, **changes)  # type: ignore[arg-type]


def make_engine(folder: Path, exported: Exported, data: bytes | None = None, **changes: object) -> Path:
    source = Path(shutil.copy(exported.model, folder / "model.onnx"))
    data = rtx_bytes() if data is None else data
    write_engine(folder / "model.engine", data, describe(exported, source, data, **changes))
    return folder / "model.engine"


def no_gpu(_: EngineManifest) -> str | None:
    return "no GPU here"


def test_header() -> None:
    assert read_header(b"") is None
    assert read_header(rtx_bytes()[:35]) is None
    assert read_header(rtx_bytes(mask=0b111111)) == Header(
        b"vtrt", 136, "1.7.1.116", ("7.5", "8.0", "8.6", "8.9", "12.0", "12.1")
    )
    assert read_header(rtx_bytes(mask=0b1000000))[3] == ("unknown bit 6",)  # type: ignore[index]


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (rtx_bytes(), None),
        (b"", "the file starts with ''"),
        (b"ftrt" + rtx_bytes()[4:], "the file starts with 'ftrt', expected 'vtrt'"),
        (rtx_bytes() + b"x", "its header says 136 bytes, the file has 137"),
        (rtx_bytes(version=(1, 6, 0, 1)), "built by version 1.6.0.1, its description says 1.7.1.116"),
        (rtx_bytes(mask=0b1000), "built for 8.9, its description says 8.6"),
        (rtx_bytes(mask=0), "built for no GPU, its description says 8.6"),
    ],
)
def test_a_header_unlike_the_description(data: bytes, problem: str | None, exported: Exported) -> None:
    found = header_problems(data, describe(exported, exported.model, data))
    assert len(found) == (problem is not None)
    assert problem is None or problem in found[0]


def test_without_a_gpu_what_can_be_is_checked_and_the_rest_said(
    exported: Exported, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_engine(tmp_path, exported)
    monkeypatch.setattr("export.verification.engine.reason_not_to_run", no_gpu)
    assert main([str(exported.checkpoint), str(path)]) == 0
    said = capsys.readouterr().out
    assert "ok           the engine's SHA-256 is the one in its description" in said
    assert "ok           its classes, preprocessing and thresholds are the checkpoint's" in said
    assert "ok           its header: TensorRT for RTX 1.7.1.116, 136 bytes, compute capability 8.6" in said
    assert "ok           model.onnx is the file that it was built from, and its manifest the engine's" in said
    assert "not checked  its detections, and the precision of its layers: no GPU here" in said
    assert "comparisons, none beyond the limit" in said


def test_a_wrong_header_and_a_wrong_source_fail(exported: Exported, tmp_path: Path) -> None:
    path = make_engine(tmp_path, exported, rtx_bytes(mask=0b1000))
    report = verify_engine(exported.loaded, path, synthetic_images(), why_not=no_gpu)
    assert [line.split(";")[0] for line in report.problems] == ["built for 8.9, its description says 8.6"]
    assert report.problems[0].endswith("build it again: python -m export.to_trt model.onnx -o model.engine")
    assert not report.passed
    other = tmp_path / "other.onnx"
    other.write_bytes((tmp_path / "model.onnx").read_bytes() + b"\x00")
    report = verify_engine(exported.loaded, make_engine(tmp_path, exported), synthetic_images(), other, why_not=no_gpu)
    assert report.problems == ("other.onnx is not the file that it was built from (another SHA-256)",)


def test_an_engine_that_says_something_else_than_its_checkpoint_fails(exported: Exported, tmp_path: Path) -> None:
    """The file that it was built from says the same: only the checkpoint tells."""
    stated = OrtBackend(exported.model).manifest
    path = make_engine(tmp_path, exported, manifest=dataclasses.replace(stated, classes=stated.classes[::-1]))
    (tmp_path / "model.onnx").unlink()
    report = verify_engine(exported.loaded, path, [], why_not=no_gpu)
    assert [line.split(";")[0] for line in report.problems] == ["its classes unlike the checkpoint's"]
    assert not report.passed


@pytest.mark.usefixtures("_counted")
def test_images_must_be_given_for_the_ranges_of_an_engine(
    converted: dict[str, Path], exported: Exported, tmp_path: Path
) -> None:
    """Whether its detections are compared or, without a GPU, those of its ONNX file."""
    int8 = exported._replace(model=converted["int8"])
    path = make_engine(tmp_path, int8)
    for reason in (None, "no GPU here"):
        with pytest.raises(VerifyError, match=r"model\.onnx is int8: .* give --images DIR"):
            verify_engine(
                exported.loaded,
                path,
                [],
                open_engine=lambda _: open_model_file(int8.model).backend,
                why_not=lambda _, reason=reason: reason,  # type: ignore[misc]
            )


def test_a_missing_source_is_said(exported: Exported, tmp_path: Path) -> None:
    path = make_engine(tmp_path, exported, flavor="tensorrt")
    (tmp_path / "model.onnx").write_bytes(b"replaced")
    report = verify_engine(exported.loaded, path, [], why_not=no_gpu)
    assert report.passed
    assert report.checks == ()
    assert len(report.unchecked) == 3
    assert report.unchecked[0] == "the header of its file: that of standard engines is not known"
    assert report.unchecked[1].startswith("the ONNX file that it was built from: not beside it")


def test_an_altered_engine_and_another_checkpoints_are_refused(exported: Exported, tmp_path: Path) -> None:
    def never(_: Path) -> OrtBackend:
        raise AssertionError("deserialized")

    path = make_engine(tmp_path, exported)
    loaded = exported.loaded._replace(sha256="0" * 64)
    with pytest.raises(VerifyError, match="built from another checkpoint"):
        verify_engine(loaded, path, [], open_engine=never, why_not=lambda _: None)
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    with pytest.raises(EngineError, match=r"altered, truncated or replaced.*build it again: python -m export\.to_trt"):
        verify_engine(exported.loaded, path, [], open_engine=never, why_not=lambda _: None)


@pytest.fixture
def _counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("export.verification.engine.inspect_convolutions", lambda *_: {"fp32": 40})


@pytest.mark.usefixtures("_counted")
def test_an_engine_that_runs_is_compared(exported: Exported, tmp_path: Path) -> None:
    """ONNX Runtime stands in for the GPU: the same graph passes, a changed one fails where it was changed."""
    path = make_engine(tmp_path, exported)
    report = verify_engine(
        exported.loaded,
        path,
        synthetic_images(),
        open_engine=lambda _: OrtBackend(exported.model),
        why_not=lambda _: None,
    )
    assert report.passed
    assert report.unchecked == ()
    assert {check.quantity for check in report.checks} >= {
        *NETWORK.values(),
        CANDIDATES,
        ROWS,
        DETECTIONS,
        ENGINE_CANDIDATES,
    }
    assert {check.case for check in report.checks} == {"1 × 96 × 128", "3 × 128 × 128"}
    assert "its convolutions, as the inspector counts them: 40 fp32" in report.confirmed

    model = onnx.load(exported.model)
    change_constants(model, 0.05, 0.2)
    broken = restamp(model, tmp_path / "broken.onnx")
    report = verify_engine(
        exported.loaded, path, synthetic_images(), open_engine=lambda _: OrtBackend(broken), why_not=lambda _: None
    )
    failed = {check.quantity for check in report.checks if not check.passed}
    assert ENGINE_CANDIDATES in failed
    assert not failed & {*NETWORK.values(), CANDIDATES}
    assert not report.passed


def test_what_a_gpu_rounds_otherwise_is_within_the_precisions_tolerance(exported: Exported) -> None:
    """Half a pixel and a hundredth of score, say: float16 may, float32 may not; four times that neither."""
    case = make_case(2, (96, 128), synthetic_images(), exported.loaded.config.preprocess.pad_value)
    raw = OrtBackend(exported.model).infer(case.images, case.image_sizes, all_candidates=True)
    random = np.random.default_rng(0)

    def passes(scale: float, precision: str) -> bool:
        boxes = raw.candidate_boxes + random.uniform(-0.5, 0.5, raw.candidate_boxes.shape).astype(np.float32) * scale
        scores = raw.candidate_scores + random.uniform(-0.01, 0.01, raw.candidate_scores.shape) * scale
        scores = np.where(raw.candidate_scores > 0, scores, 0).astype(np.float32)
        ours = dataclasses.replace(raw, candidate_boxes=boxes, candidate_scores=scores)
        check = compare_candidates(case, raw, ours, TOLERANCES[precision])
        assert check.compared > 100
        return check.passed

    assert passes(0, "fp32")
    assert passes(1, "fp16")
    assert not passes(1, "fp32")
    assert not passes(4, "fp16")
    assert passes(4, "int8 tensorrt")


@pytest.mark.usefixtures("_counted")
def test_a_wide_engine_fails(exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = dataclasses.replace(OrtBackend(exported.model).manifest, precision="fp16")
    path = make_engine(tmp_path, exported, manifest=manifest)
    (tmp_path / "model.onnx").unlink()
    report = verify_engine(
        exported.loaded, path, [], open_engine=lambda _: OrtBackend(exported.model), why_not=lambda _: None
    )
    assert len(report.problems) == 1
    assert report.problems[0].startswith("only 0 of 40 convolutions are fp16 (40 fp32)")


def test_cases_lie_in_the_profiles(exported: Exported) -> None:
    profiles = (SHAPES, Profile((4, 64, 64), (8, 64, 64), (8, 64, 64)))
    described = describe(exported, exported.model, b"", profiles=profiles)
    shapes = [case.images.shape[:3] for case in engine_cases(described, synthetic_images())]
    assert shapes == [(1, 96, 128), (3, 128, 128), (4, 64, 64)]
    assert all(any(profile.takes(*shape) for profile in profiles) for shape in shapes)


# The inspector's JSON, as TensorRT 10 and 11 write it.


def layer(kind: str, dtype: str, key: str = "Format/Datatype", **others: object) -> dict[str, object]:
    tensor = {"Name": "x", "Dimensions": [1, 8, 8, 8], key: dtype}
    return {"Name": "layer", "LayerType": kind, "Inputs": [tensor], "Outputs": [tensor], **others}


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        ([], {}),
        ([layer("CaskConvolution", "Channel major FP16 format where channel % 8 == 0")], {"fp16": 1}),
        ([layer("CaskConvolution", "Row major linear FP32")], {"fp32": 1}),
        ([layer("CaskConvolution", "Thirty-two wide channel vectorized row major Int8 format")], {"int8": 1}),
        ([layer("conv", "Half", "DataType", **{"Format": "Row major linear format (kLINEAR)"})], {"fp16": 1}),
        ([layer("conv", "BFloat16", "DataType"), layer("conv", "BF16")], {"bf16": 2}),
        ([layer("conv", "FP8")], {"fp8": 1}),
        ([layer("conv", "Float"), layer("conv", "Half"), layer("conv", "Half")], {"fp32": 1, "fp16": 2}),
        ([layer("kgen", "Half", Metadata="[ONNX Layer: node_conv2d_3]")], {"fp16": 1}),
        ([layer("kgen", "Half", Metadata="[ONNX Layer: node_matmul_3]")], {}),  # NMS counts 0/1 matrices in fp16
        ([layer("Reformat", "Float", Name="Reformatting CopyNode for Input Tensor 0 to conv1")], {}),
        (["conv1 + relu1", "conv2"], {}),  # built without detailed verbosity
    ],
)
def test_convolutions_are_counted_by_what_they_read(layers: list[object], expected: dict[str, int]) -> None:
    assert convolutions_by_precision(json.dumps({"Layers": layers, "Bindings": ["images"]})) == expected


def test_what_the_inspector_may_say_otherwise() -> None:
    assert convolutions_by_precision("") == {}
    assert convolutions_by_precision("[]") == {}
    assert convolutions_by_precision("{}") == {}


def test_a_version_compatible_engine_is_inspected_with_the_code_that_it_brings(
    exported: Exported, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the stand-in, which opens no such engine otherwise, and lets no other bring code."""
    pytest.importorskip("cuda.bindings.runtime", reason="the stand-in takes its enumerations from cuda-python")
    from ...support.standin.install import install
    from ...support.standin.trt_engine import engine_bytes

    install(monkeypatch)
    for compatible in (True, False):
        data = engine_bytes([], host_code=compatible, layers=[layer("conv", "Half"), layer("conv", "Float")])
        described = describe(exported, exported.model, data, flavor="tensorrt", version_compatible=compatible)
        assert inspect_convolutions(described, data) == {"fp16": 1, "fp32": 1}
    with pytest.raises(BuildError, match=r"cannot deserialize the engine .*: Error Code 3: engine_host_code_allowed"):
        inspect_convolutions(described, engine_bytes([], host_code=True, layers=[layer("conv", "Half")]))


@pytest.mark.parametrize(
    ("layers", "precision", "wrong"),
    [
        ({}, "fp16", False),
        ({"fp16": 60, "fp32": 1}, "fp16", False),
        ({"fp32": 61}, "fp16", True),
        ({"fp16": 30, "fp32": 31}, "fp16", True),
        ({"int8": 55, "fp16": 6}, "int8", False),
        ({"fp16": 61}, "int8", True),
        ({"fp32": 61}, "fp32", False),
    ],
)
def test_wide_engines_are_told(layers: dict[str, int], precision: Precision, wrong: bool) -> None:
    assert (precision_problem(layers, precision) is not None) == wrong


def test_the_description_beside_a_real_engine_reads(exported: Exported, tmp_path: Path) -> None:
    path = make_engine(tmp_path, exported)
    assert read_description(path).profiles == (SHAPES,)
    assert np.frombuffer(path.read_bytes()[16:24], np.uint64)[0] == path.stat().st_size
