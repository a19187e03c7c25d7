"""An engine's description: read back, refused where anything in it or in the engine isn't as written."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from runtime import files
from runtime.backends.engine_file import (
    EngineError,
    EngineManifest,
    Profile,
    Tensor,
    json_path,
    read_description,
    read_engine,
    this_platform,
    to_json,
    write_engine,
)
from runtime.files import WriteError
from runtime.manifest import InputShapes, Manifest, Preprocess, Thresholds

DATA = b"vtrt and more"
DESCRIBED = EngineManifest(
    manifest=Manifest(
        classes=("cat", "dog"),
        category_ids=(1, 7),
        preprocess=Preprocess(short_side=192, long_side=256),
        thresholds=Thresholds(),
        precision="fp16",
        inputs=InputShapes(1, 16, 64, 1344, 64, 1344),
        recipe="test",
        checkpoint_sha256="c" * 64,
        graph_sha256="a" * 64,
        toolkit_version="0.1.0",
        libraries={"torch": "2.9"},
        ap=0.25,
    ),
    flavor="rtx",
    library_version="1.7.1.116",
    compute_capabilities=("8.6", "12.0"),
    platform="linux-x86_64",
    engine_sha256=hashlib.sha256(DATA).hexdigest(),
    onnx_sha256="b" * 64,
    profiles=(Profile((1, 64, 64), (4, 192, 256), (16, 192, 256)),),
    tensors=(Tensor("images", "input", "uint8", (-1, -1, -1, 3)),),
    rebuild="python -m export.to_trt model.onnx -o model.engine",
    layers={"fp16": 60},
)


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    path = tmp_path / "model.engine"
    write_engine(path, DATA, DESCRIBED)
    return path


def test_what_was_written_is_read(engine: Path) -> None:
    assert read_engine(engine) == (DATA, DESCRIBED)
    assert read_description(engine) == DESCRIBED
    assert sorted(path.name for path in engine.parent.iterdir()) == ["model.engine", "model.engine.json"]
    assert json_path(engine) == engine.with_name("model.engine.json")
    assert json_path("a.plan") == Path("a.plan.json")


def test_the_command_of_an_older_description_runs_elsewhere_too(engine: Path) -> None:
    change(engine, rebuild="python export/to_trt.py model.onnx -o model.engine")
    assert read_description(engine) == DESCRIBED


def test_an_engine_that_was_altered_is_not_handed_out(engine: Path) -> None:
    for data in (DATA[:-1], DATA + b"x", b"", DATA[:-1] + b"\x00"):
        engine.write_bytes(data)
        with pytest.raises(
            EngineError, match=r"altered, truncated or replaced.*not loaded; build it again: python -m ex"
        ) as caught:
            read_engine(engine)
        assert len(str(caught.value).splitlines()) == 1


def test_missing_files(engine: Path, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="cannot read the engine: No such file"):
        read_engine(tmp_path / "other.engine")
    json_path(engine).unlink()
    with pytest.raises(EngineError, match=r"cannot read its description model\.engine\.json .*build the engine again"):
        read_engine(engine)


def change(engine: Path, **fields: Any) -> None:
    path = json_path(engine)
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"version": 2}, "version 2, this toolkit reads version 1"),
        ({"version": True}, "version True"),
        ({"flavor": "openvino"}, "flavor"),
        ({"engine_sha256": 5}, "engine_sha256"),
        ({"profiles": []}, "expected 1 to 1000 values"),
        ({"profiles": [{"least": [1, 64], "best": [1, 64, 64], "most": [1, 64, 64]}]}, "profiles"),
        ({"surprise": 1}, "surprise"),
        ({"tensors": [{"name": "a", "kind": "inner", "dtype": "uint8", "shape": []}]}, "tensors"),
        ({"layers": {"fp16": "many"}}, "layers"),
        ({"manifest": {}}, "manifest"),
    ],
)
def test_a_description_that_was_changed_names_the_field(fields: dict[str, Any], message: str, engine: Path) -> None:
    change(engine, **fields)
    with pytest.raises(EngineError, match=message) as caught:
        read_engine(engine)
    assert len(str(caught.value).splitlines()) == 1
    assert "build the engine again" in str(caught.value)


def test_a_manifest_inside_that_makes_no_sense(engine: Path) -> None:
    fields = json.loads(json_path(engine).read_text())
    fields["manifest"]["category_ids"] = [1, 1]
    json_path(engine).write_text(json.dumps(fields))
    with pytest.raises(EngineError, match=r"category_ids.*build the engine again"):
        read_description(engine)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b"[" * 100_000])
def test_a_description_that_is_none(content: bytes, engine: Path) -> None:
    json_path(engine).write_bytes(content)
    with pytest.raises(EngineError, match="build the engine again"):
        read_description(engine)


def test_a_description_of_another_engine_is_a_defect(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="of another engine"):
        write_engine(tmp_path / "model.engine", b"others", DESCRIBED)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("of", [1, 2])
def test_an_engine_that_cannot_be_written_leaves_the_old_one_loadable(
    of: int, error: BaseException, engine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever of the two files the disk has no room for, which it may tell as late as on fsync."""
    synced = []

    def full(descriptor: int) -> None:
        synced.append(descriptor)
        if len(synced) == of:
            raise error

    monkeypatch.setattr(files.os, "fsync", full)
    newer = b"newer"
    described = dataclasses.replace(DESCRIBED, engine_sha256=hashlib.sha256(newer).hexdigest())
    with pytest.raises(WriteError if isinstance(error, OSError) else KeyboardInterrupt):
        write_engine(engine, newer, described)
    assert len(synced) == of
    assert read_engine(engine) == (DATA, DESCRIBED)
    assert sorted(path.name for path in engine.parent.iterdir()) == ["model.engine", "model.engine.json"]


def test_a_reader_between_the_two_renames_refuses(engine: Path) -> None:
    described = dataclasses.replace(DESCRIBED, engine_sha256="d" * 64)
    json_path(engine).write_text(to_json(described))
    with pytest.raises(EngineError, match="SHA-256"):
        read_engine(engine)


def test_profiles_take_what_lies_within() -> None:
    profile = Profile((1, 64, 96), (4, 192, 256), (16, 192, 256))
    assert profile.takes(1, 64, 96)
    assert profile.takes(16, 192, 256)
    assert not profile.takes(17, 192, 256)
    assert not profile.takes(1, 32, 96)
    assert not profile.takes(1, 224, 256)
    assert not profile.takes(1, 64, 64)


def test_the_platform_is_named() -> None:
    assert "-" in this_platform()
    assert this_platform() == this_platform().lower()
