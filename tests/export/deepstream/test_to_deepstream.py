"""The folder for DeepStream: its configurations read back, every key one of nvinfer's, all of the folder or nothing."""

from __future__ import annotations

import configparser
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest

from export import export_step
from export.api import export_onnx
from export.arguments import ArgumentError
from export.deepstream import write
from export.deepstream.configuration import (
    Groups,
    Settings,
    app_groups,
    engine_name,
    infer_groups,
    key_file,
    label_lines,
)
from export.deepstream.contract import Version
from export.deepstream.variant import to_variant
from export.deepstream.write import default_canvas, new_folder, write_deepstream
from export.onnx_model.network import ModelError, load_deployed
from export.to_deepstream import main
from export.to_onnx import main as to_onnx
from export.verification.checks import Check
from runtime.errors import UserError
from runtime.files import WriteError
from runtime.manifest import InputShapes, Preprocess

from ...support.fakes import MANIFEST, manifest_with
from ..conftest import Exported

KEYS: dict[str, dict[str, Any]] = json.loads((Path(__file__).parent / "nvinfer_keys.json").read_text("utf-8"))
SETTINGS = Settings("9", 4, 0.3, (720, 1280))
FILES = ["config_infer_primary.txt", "deepstream_app_config.txt", "labels.txt", "model.onnx"]


def unknown_keys(text: str, version: str) -> list[str]:
    """The keys of an nvinfer configuration that a version of DeepStream doesn't know."""
    known, unknown = KEYS[version], []
    for group, keys in read_back(text).items():
        kind = "class-attrs" if group.startswith("class-attrs-") else group
        unknown += [f"[{group}] {key}" for key in keys if key not in known.get(kind, ())]
    return unknown


def read_back(text: str) -> dict[str, dict[str, str]]:
    """The groups of a key file, by its rules: groups in brackets, key=value, comments of whole lines, case matters.

    configparser alone would accept more, such as continued lines.
    """
    for line in text.splitlines():
        assert line == line.strip(), "GLib's key files have no indented lines"
        assert line == "" or line[0] in "#[" or line.partition("=")[1] == "=", line
    parser = configparser.RawConfigParser(delimiters=("=",), comment_prefixes=("#",), strict=True)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string(text)
    return {name: dict(parser[name]) for name in parser.sections()}


@pytest.fixture(scope="module")
def folder(exported: Exported, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("deepstream") / "made"
    assert (
        main([str(exported.model), "-o", str(out), "--batch", "4", "--canvas", "192", "256", "--frame", "720", "1280"])
        == 0
    )
    return out


def test_the_folder_is_whole(folder: Path) -> None:
    assert sorted(path.name for path in folder.iterdir()) == FILES
    assert sorted(path.name for path in folder.parent.iterdir()) == ["made"]
    assert (folder / "labels.txt").read_text("utf-8").splitlines() == ["circle", "square", "star"]


def test_the_configuration_says_what_the_model_is(folder: Path) -> None:
    groups = read_back((folder / "config_infer_primary.txt").read_text("utf-8"))
    assert set(groups) == {"property", "class-attrs-all"}
    said = groups["property"]
    model = onnx.load(folder / "model.onnx")
    (images,) = model.graph.input
    sides = [side.dim_value for side in images.type.tensor_type.shape.dim]
    assert said["onnx-file"] == "model.onnx"
    assert said["infer-dims"] == ";".join(map(str, sides[1:])) == "3;192;256"
    assert said["output-blob-names"].split(";") == [value.name for value in model.graph.output]
    assert int(said["num-detected-classes"]) == len((folder / said["labelfile-path"]).read_text("utf-8").splitlines())
    assert (said["batch-size"], said["model-engine-file"]) == ("4", "model.onnx_b4_gpu0_fp32.engine")
    assert (said["network-type"], said["network-mode"], said["strongly-typed"]) == ("0", "0", "1")
    assert (float(said["net-scale-factor"]), said["offsets"], said["model-color-format"]) == (1.0, "0;0;0", "0")
    assert (said["maintain-aspect-ratio"], said["symmetric-padding"], said["scaling-filter"]) == ("1", "0", "1")
    assert (said["cluster-mode"], said["gie-unique-id"]) == ("4", "1")
    assert said["crop-objects-to-roi-boundary"] == "1"
    assert said["parse-bbox-func-name"] == "NvDsInferParseCustomEfficientDetTAO"
    assert said["custom-lib-path"].endswith("/libnvds_infercustomparser.so")
    assert groups["class-attrs-all"] == {"pre-cluster-threshold": "0.3", "topk": "100"}


def test_the_application_runs_that_configuration(folder: Path) -> None:
    groups = read_back((folder / "deepstream_app_config.txt").read_text("utf-8"))
    primary, infer = groups["primary-gie"], read_back((folder / "config_infer_primary.txt").read_text("utf-8"))
    assert (folder / primary["config-file"]).is_file()
    assert primary["gie-unique-id"] == infer["property"]["gie-unique-id"]
    assert groups["streammux"]["batch-size"] == infer["property"]["batch-size"] == groups["source0"]["num-sources"]
    assert (groups["streammux"]["height"], groups["streammux"]["width"]) == ("720", "1280")
    assert {"application", "sink0", "tests"} <= set(groups)


@pytest.mark.parametrize("version", ["7.1", "8.0", "9"])
def test_every_key_is_one_of_nvinfers(version: Version) -> None:
    text = key_file(infer_groups(MANIFEST, replace(SETTINGS, version=version)), f"DeepStream {version}")
    assert unknown_keys(text, version) == []


def test_every_key_of_the_application_is_known() -> None:
    groups = {name: dict(keys) for name, keys in app_groups(SETTINGS).items()}
    assert unknown_keys(key_file(groups, ""), "deepstream-app") == []
    groups["streammux"]["batched-push-time"] = 1
    assert unknown_keys(key_file(groups, ""), "deepstream-app") == ["[streammux] batched-push-time"]


def test_the_lists_of_keys_grow_and_name_their_sources() -> None:
    assert all(len(known["source"]) > 40 for known in KEYS.values())
    assert set(KEYS["7.1"]["property"]) < set(KEYS["8.0"]["property"]) < set(KEYS["9"]["property"])
    assert "strongly-typed" in KEYS["9"]["property"]


@pytest.mark.parametrize(
    ("group", "key", "version"),
    [
        ("property", "strongly-typed", "8.0"),
        ("property", "netscale-factor", "9"),
        ("property", "topk", "9"),
        ("class-attrs-all", "min-boxes", "9"),
        ("propertys", "gpu-id", "9"),
    ],
)
def test_a_planted_wrong_key_is_found(group: str, key: str, version: str) -> None:
    groups = {name: dict(keys) for name, keys in infer_groups(MANIFEST, replace(SETTINGS, version="8.0")).items()}
    assert unknown_keys(key_file(groups, ""), "7.1") == ["[property] crop-objects-to-roi-boundary"]
    groups.setdefault(group, {})[key] = 1
    assert unknown_keys(key_file(groups, ""), version) == [f"[{group}] {key}"]


@pytest.mark.parametrize("line", [" gpu-id=0", "gpu-id: 0", "gpu-id"])
def test_a_planted_wrong_syntax_is_found(line: str) -> None:
    with pytest.raises(AssertionError):
        read_back(f"[property]\n{line}\n")


def test_case_and_percent_signs_survive() -> None:
    groups: Groups = {"class-attrs-0": {"minBoxes": 3, "note": "100%s"}}
    assert read_back(key_file(groups, "one\ntwo")) == {"class-attrs-0": {"minBoxes": "3", "note": "100%s"}}
    assert key_file(groups, "one\ntwo").startswith("# one\n# two\n[class-attrs-0]\n")
    assert read_back(key_file(app_groups(SETTINGS), ""))["streammux"]["width"] == "1280"


@pytest.mark.parametrize(
    ("frame_hw", "expected"),
    [((1080, 1920), (192, 320)), ((720, 1280), (192, 320)), ((480, 640), (256, 320)), ((1920, 1080), (320, 192))],
)
def test_the_canvas_is_this_toolkits_for_the_frames(frame_hw: tuple[int, int], expected: tuple[int, int]) -> None:
    """240/320: a frame of 16:9 becomes 180 × 320, and the canvas' sides are multiples of 32."""
    manifest = manifest_with(preprocess=Preprocess(240, 320), inputs=InputShapes(1, 16, 64, 1344, 64, 1344))
    assert default_canvas(manifest, frame_hw) == expected
    fixed = replace(manifest, inputs=InputShapes(1, 1, 256, 256, 320, 320))
    assert default_canvas(fixed, frame_hw) == (256, 320)


def test_labels_that_nvinfer_would_cut() -> None:
    assert label_lines(("Größe", "a b")) == "Größe\na b\n"
    for name in ("a;b", "a\nb", " ", ""):
        with pytest.raises(UserError, match=r"can't stand in DeepStream's labels\.txt"):
            label_lines(("fine", name))


def test_the_engine_has_the_name_that_nvinfer_looks_for() -> None:
    assert engine_name(8) == "model.onnx_b8_gpu0_fp32.engine"


def test_a_folder_that_exists_stays_as_it_was(exported: Exported, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("x")
    with pytest.raises(UserError, match="out: exists already; name a new folder"):
        main([str(exported.model), "-o", str(tmp_path / "out")])
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.txt"]
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UserError, match="exists already"):
        main([str(exported.model), "-o", str(tmp_path / "dangling")])


def written_with(out: Path, failure: Callable[[], None]) -> None:
    with new_folder(out) as folder:
        (folder / "a").write_text("x")
        failure()


def test_a_write_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def full() -> None:
        raise OSError(28, "No space left on device")

    def stopped() -> None:
        raise KeyboardInterrupt

    with pytest.raises(WriteError, match=r"cannot write .*made: No space left"):
        written_with(tmp_path / "made", full)
    with pytest.raises(KeyboardInterrupt):
        written_with(tmp_path / "made", stopped)
    with pytest.raises(WriteError, match="there is a file or folder of that name"):
        written_with(tmp_path / "late", (tmp_path / "late").mkdir)  # by someone else, meanwhile
    assert [path.name for path in tmp_path.iterdir()] == ["late"]
    assert list((tmp_path / "late").iterdir()) == []


def test_a_variant_that_differs_is_not_written(
    exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("export.deepstream.verify.verify_variant", lambda *_: [Check("1", "numbers", 10, 1, 0)])
    assert main([str(exported.model), "-o", str(tmp_path / "out")]) == 1
    assert list(tmp_path.iterdir()) == []


def test_int8_for_cpus_is_refused(converted: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="its int8 is for CPUs, which TensorRT lacks; quantize the float32 file"):
        write_deepstream(converted["int8-cpu"], tmp_path / "out")


@pytest.mark.parametrize("version", ["7.1", "8.0"])
def test_earlier_versions_get_no_unknown_key_and_a_warning(
    version: Version, deployed: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    written = write_deepstream(deployed["fp16"], tmp_path / "out", canvas_hw=(64, 96), version=version)
    assert written.manifest.precision == "fp16"
    text = (tmp_path / "out" / "config_infer_primary.txt").read_text("utf-8")
    assert "strongly-typed" not in text
    assert ("crop-objects-to-roi-boundary" in text) == (version == "8.0")
    assert ("# for frames of 1920×1080: the graph limits boxes to them" in text) == (version == "7.1")
    limits = [value for value in onnx.load(tmp_path / "out" / "model.onnx").graph.initializer if "limits" in value.name]
    assert len(limits) == (version == "7.1")
    assert [r.getMessage() for r in caplog.records if r.levelname == "WARNING"] == [
        f"warning: nvinfer of DeepStream {version} doesn't keep the types of the graph when it builds an engine; build "
        "one on the machine that runs it, under the name that model-engine-file has"
    ]


def test_the_exporter_writes_the_same_variant(
    exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Verified against the checkpoint, and against the graph with this toolkit's inputs. The fixture has traced it."""
    monkeypatch.setattr(export_step, "checkpoint_to_graph", lambda *_: exported.model.read_bytes())
    out = tmp_path / "variant.onnx"
    assert to_onnx([str(exported.checkpoint), "-o", str(out), "--interface", "deepstream"]) == 0
    model, manifest = load_deployed(out)
    expected = to_variant(*load_deployed(exported.model))
    assert model == expected
    assert manifest.interface == "deepstream"
    assert [path.name for path in tmp_path.iterdir()] == ["variant.onnx"]


def test_the_exporter_publishes_no_variant_of_a_wrong_graph(
    exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export_step, "checkpoint_to_graph", lambda *_: exported.model.read_bytes())
    monkeypatch.setattr(export_step, "verify_export", lambda *_: [Check("1", "network", 10, 1, 0)])
    made = export_onnx(exported.checkpoint, tmp_path / "variant.onnx", interface="deepstream")
    assert not made.passed
    assert [path.name for path in tmp_path.iterdir()] == ["variant.failed.onnx"]


def test_the_exporter_makes_it_in_float32_alone(exported: Exported, tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="--interface deepstream --precision fp16: make the file in that precision"):
        export_onnx(exported.checkpoint, tmp_path / "x.onnx", interface="deepstream", precision="fp16")


def test_help_comes_without_a_heavy_library(repository: Path) -> None:
    program = "import sys, export.to_deepstream; print(sorted({'torch', 'onnx', 'onnxruntime'} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", program], cwd=repository, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_it_runs_without_torch_and_as_a_script(exported: Exported, repository: Path, tmp_path: Path) -> None:
    blocked = tmp_path / "blocked"
    blocked.mkdir()
    (blocked / "torch.py").write_text("raise ModuleNotFoundError(\"No module named 'torch'\", name='torch')")
    words = ["export/to_deepstream.py", str(exported.model), "-o", str(tmp_path / "out"), "--canvas", "64", "96"]
    done = subprocess.run(
        [sys.executable, *words],
        cwd=repository,
        env={**os.environ, "PYTHONPATH": str(blocked)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert done.stdout.splitlines()[-2] == "5 comparisons, none beyond the limit"
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == FILES


def test_the_default_score_is_that_of_detect() -> None:
    from runtime.detect import MIN_SCORE

    assert write.SCORE == MIN_SCORE
