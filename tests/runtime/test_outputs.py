"""`check_outputs` sees an input behind every name; `alone_in` lets one run into a folder, and frees it after a kill."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from runtime import outputs
from runtime.errors import UserError
from runtime.files import WriteError, atomic_write
from runtime.outputs import LOCK, OutputError, alone_in, check_outputs, side_files


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "in" / "a.json"
    path.parent.mkdir()
    path.write_text("precious")
    return path


def test_nothing_is_refused_without_inputs_or_outputs(source: Path) -> None:
    check_outputs([], {})
    check_outputs([source, None], {})
    check_outputs([source], {"--json": None, "-o": []})
    check_outputs([], {"--json": source})
    check_outputs([source, "triton://host:8001/model"], {"--json": source.with_name("b.json")})


@pytest.mark.parametrize("spelling", ["plain", "dots", "relative", "hard", "soft", "chain", "folder", "string"])
def test_an_input_is_seen_behind_every_name(
    source: Path, tmp_path: Path, spelling: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    other = tmp_path / "other.json"
    target: str | Path = other
    match spelling:
        case "plain":
            target = source
        case "dots":
            target = tmp_path / "in" / ".." / "in" / "." / "a.json"
        case "relative":
            target = Path("in/a.json")
        case "hard":
            os.link(source, other)
        case "soft":
            other.symlink_to(source)
        case "chain":
            (tmp_path / "between").symlink_to(source)
            other.symlink_to(tmp_path / "between")
        case "folder":
            (tmp_path / "same").symlink_to(source.parent)
            target = tmp_path / "same" / "a.json"
        case "string":
            target = str(source)
    with pytest.raises(OutputError, match=r"--json .*json: this run reads that file.*; choose another name"):
        check_outputs([source], {"--json": target})
    with pytest.raises(OutputError, match="this run reads that file"):
        check_outputs([str(target)], {"--json": source})


@pytest.mark.parametrize("exists", [False, True])
def test_one_file_is_not_written_twice(source: Path, tmp_path: Path, exists: bool) -> None:
    first = source if exists else source.with_name("new.json")
    (tmp_path / "same").symlink_to(source.parent)
    for second in (first, tmp_path / "same" / first.name, source.parent / ".." / "in" / first.name):
        with pytest.raises(OutputError, match=r"--b .*: this run writes that file already, by --a"):
            check_outputs([], {"--a": first, "--b": second})
    with pytest.raises(OutputError, match="writes that file already"):
        check_outputs([], {"-o": [first, first]})
    dangling = tmp_path / "dangling.json"
    dangling.symlink_to(source.with_name("new2.json"))
    with pytest.raises(OutputError, match="writes that file already"):
        check_outputs([], {"--a": source.with_name("new2.json"), "--b": dangling})


def test_devices_and_pipes_are_left_to_the_writers(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    check_outputs([pipe, os.devnull], {"--a": os.devnull, "--b": os.devnull, "--c": pipe, "--d": pipe})


def test_a_folder_stands_for_the_images_below_it(tmp_path: Path) -> None:
    images = tmp_path / "images"
    (images / "deep").mkdir(parents=True)
    (images / "deep" / "up").symlink_to(images)  # a circle
    image, store = images / "deep" / "a.jpg", tmp_path / "store.png"
    image.write_text("picture")
    store.write_text("picture")
    (images / "linked.png").symlink_to(store)
    hard = tmp_path / "hard.png"
    os.link(image, hard)
    for target in (image, store, hard, images / "linked.png", images / "deep" / "up" / "deep" / "a.jpg"):
        with pytest.raises(OutputError, match="this run reads that file"):
            check_outputs([images], {"--plot": target})
    (images / "metrics.json").write_text("{}")  # of an earlier run
    check_outputs([images], {"--json": [images / "metrics.json", images / "deep" / "new.jpg"]})


def test_what_lies_beside_a_model_is_read_too(tmp_path: Path) -> None:
    engine = tmp_path / "m.engine"
    for path in (engine, *(beside := side_files(engine))):
        path.write_text("x")
    assert {path.name for path in beside} == {"m.engine.json", "m.engine.cache", "m.engine.decoders.json"}
    for path in beside:
        with pytest.raises(OutputError, match="reads that file"):
            check_outputs([engine], {"--json": path})
    beside[-1].unlink()
    with pytest.raises(OutputError, match="reads that file"):  # it is written when the engine is closed
        check_outputs([engine], {"--json": beside[-1]})
    check_outputs([engine], {"--json": tmp_path / "m.json"})


@pytest.mark.parametrize("name", ["w", "weights.bin", "l" * 127, "l" * 200])
def test_weights_outside_an_onnx_file_are_read_too(tmp_path: Path, name: str) -> None:
    onnx = pytest.importorskip("onnx", reason="writes the file")
    weight = onnx.helper.make_tensor("w", onnx.TensorProto.FLOAT, [1000], b"\0" * 4000, raw=True)
    node = onnx.helper.make_node("Identity", ["w"], ["y"])
    y = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1000])
    model = onnx.helper.make_model(onnx.helper.make_graph([node], "g", [], [y], [weight]))
    path = tmp_path / "m.onnx"
    onnx.save(model, path, save_as_external_data=True, location=name, size_threshold=0)
    assert side_files(path) == [tmp_path / "m.onnx.decoders.json", tmp_path / name]
    with pytest.raises(OutputError, match="reads that file"):
        check_outputs([path], {"--json": tmp_path / name})


@pytest.mark.parametrize("length", [b"", b"\xff", b"\x7fa"])
def test_a_damaged_onnx_file_is_no_error_here(tmp_path: Path, length: bytes) -> None:
    (tmp_path / "m.onnx").write_bytes(b"\x0a\x08location\x12" + length)
    check_outputs([tmp_path / "m.onnx"], {"--json": tmp_path / "m.json"})
    check_outputs([tmp_path / "missing.onnx"], {"--json": tmp_path / "m.json"})
    os.mkfifo(tmp_path / "pipe.onnx")
    check_outputs([tmp_path / "pipe.onnx"], {"--json": tmp_path / "m.json"})


HOLD = (
    "import sys, time; from pathlib import Path; from runtime.outputs import alone_in\n"
    "with alone_in(Path(sys.argv[1])):\n    print('in', flush=True)\n    time.sleep(60)\n"
)


def test_the_second_run_is_refused_and_a_killed_one_frees_the_folder_at_once(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "in\n"
    process.stdout.close()
    try:
        before = time.monotonic()
        expected = rf"run: another run is working here \(process {process.pid} on .*\); wait for it or choose another"
        with pytest.raises(OutputError, match=expected), alone_in(folder):
            pass
        with pytest.raises(OutputError, match="another run"), alone_in(folder, wait_s=0.3):
            pass
        assert time.monotonic() - before >= 0.3
    finally:
        process.kill()
        process.wait()
    with alone_in(folder):
        (folder / "made").touch()
        with pytest.raises(UserError, match="another run"), alone_in(folder):  # another thread of this process
            pass
        with alone_in(tmp_path / "elsewhere"):
            pass
    with alone_in(folder):
        pass


def test_a_folder_that_stays_empty_is_removed_only_where_the_lock_made_it(tmp_path: Path) -> None:
    with alone_in(tmp_path / "new" / "run"):
        pass
    assert list((tmp_path / "new").iterdir()) == []
    (tmp_path / "old").mkdir()
    with alone_in(tmp_path / "old"):
        pass
    assert [path.name for path in (tmp_path / "old").iterdir()] == ["lock"]


def test_a_folder_that_cannot_be_written_and_one_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(WriteError, match=r"cannot write .*file"), alone_in(tmp_path / "file"):
        pass
    monkeypatch.setattr(outputs, "try_lock", lambda descriptor: None)
    with alone_in(tmp_path / "run"), alone_in(tmp_path / "run"):
        pass


def test_a_link_at_an_output_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    link, place = tmp_path / "latest.json", tmp_path / "store" / "data"
    link.symlink_to(place)
    atomic_write(link, "1")
    atomic_write(link, "2")
    assert link.is_symlink()
    assert place.read_text() == "2"
    assert [path.name for path in (tmp_path / "store").iterdir()] == ["data"]
    circle = tmp_path / "circle"
    circle.symlink_to(circle)
    with pytest.raises(WriteError, match=r"cannot write .*circle"):
        atomic_write(circle, "1")


@pytest.mark.parametrize("content", [b'{"images": []}', b"process " + b"x" * 2000])
def test_a_file_of_somebody_that_has_the_locks_name_is_kept(tmp_path: Path, content: bytes) -> None:
    (tmp_path / LOCK).write_bytes(content)
    with pytest.raises(OutputError, match="is no lock; move it or choose another --out"), alone_in(tmp_path):
        pytest.fail("the folder was taken")
    assert (tmp_path / LOCK).read_bytes() == content


def test_the_lock_of_an_earlier_run_is_taken_again(tmp_path: Path) -> None:
    for _ in range(2):
        with alone_in(tmp_path):
            assert (tmp_path / LOCK).read_bytes().startswith(b"process ")


@pytest.mark.parametrize("name", ["x" * 5000, "a\0b", "\ud800", "folder/" + "x" * 300])
def test_a_name_that_no_file_can_have_is_nobodys_input(name: str, tmp_path: Path) -> None:
    """Whatever opens it says so."""
    check_outputs([tmp_path / "a.json"], {"-o": name})
    check_outputs([name], {"-o": tmp_path / "a.json"})
