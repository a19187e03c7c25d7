"""The files that detect writes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from runtime.detect import TEXT_FORMATS, main
from runtime.detection_files import detection_row, json_file, json_lines_file
from runtime.detections import Detections, empty_detections
from runtime.errors import UserError
from runtime.files import WriteError
from runtime.images import decode
from tests.support.fakes import manifest_with

from .test_detect import found, write_image, write_video


def fail_after(path: Path, rows: int, error: BaseException) -> None:
    with json_file(path, {"classes": []}) as results:
        for row in range(rows):
            results.add({"row": row})
        raise error


def test_a_defect_leaves_the_old_file(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("old")
    with pytest.raises(ZeroDivisionError):
        fail_after(tmp_path / "x.json", 3, ZeroDivisionError())
    assert (tmp_path / "x.json").read_text() == "old"


def test_an_interrupted_run_keeps_what_it_has(tmp_path: Path) -> None:
    path = tmp_path / "detections.json"
    for error in (KeyboardInterrupt(), WriteError("cannot write x")):
        with pytest.raises(type(error)):
            fail_after(path, 2, error)
        content = json.loads(path.read_text())
        assert content["images"] == [{"row": 0}, {"row": 1}]
        assert content["complete"] is False
    path.write_text("old")
    with pytest.raises(WriteError):
        fail_after(path, 0, WriteError("x"))
    assert path.read_text() == "old"


def test_numbers_are_rounded_as_python_rounds_them() -> None:
    """Digit for digit, halves and signs of zero included."""
    rng = np.random.default_rng(0)
    values = np.concatenate(
        [rng.uniform(0, 4000, 20_000), np.arange(20_000) / 16, rng.random(20_000), -rng.random(1000), [-0.0, 1e30]]
    ).astype(np.float32)
    values = np.resize(values, (len(values) // 4, 4))
    found = Detections(values, values[:, 0], np.arange(len(values)) % 3)
    row = detection_row((480, 640), found, manifest_with(classes=("a", "b", "c"), category_ids=(5, 7, 2)))
    assert (row["height"], row["width"]) == (480, 640)
    for got, box, label in zip(row["detections"], values.tolist(), found.classes.tolist(), strict=True):
        expected = {
            "class": "abc"[label],
            "category_id": (5, 7, 2)[label],
            "score": round(box[0], 6),
            "box_xyxy": [round(value, 3) for value in box],
        }
        assert json.dumps(got) == json.dumps(expected)
    assert detection_row((1, 2), empty_detections(), manifest_with()) == {"height": 1, "width": 2, "detections": []}


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_json_lines_say_what_the_json_file_says(model: Path, tmp_path: Path) -> None:
    folder, out, jsonl = tmp_path / "in", tmp_path / "out", tmp_path / "new" / "found.jsonl"
    for number in range(3):
        write_image(folder / f"größe{number}.png", 60 + 30 * number)
    (folder / "bad.jpg").write_bytes(b"")
    write_video(folder / "film.mp4", frames=3)
    main([str(model), str(folder), "-o", str(out), "--json-only", "--jsonl", str(jsonl)])
    rows, content = lines(jsonl), found(out)
    assert [row for row in rows if "detections" in row] == content["images"]
    assert [row for row in rows if "detections" not in row] == content["skipped"]
    assert Path(rows[0]["file"]).name == "bad.jpg", "lines come in the order of the inputs"
    assert len(rows) == 3 + 1 + 3


def test_json_lines_are_there_as_soon_as_they_are_done(tmp_path: Path) -> None:
    path = tmp_path / "found.jsonl"
    path.write_text("of a run before")
    with json_lines_file(path) as writer:
        for number in range(3):
            writer.add({"row": number})
            assert [row["row"] for row in lines(path)] == list(range(number + 1))
        writer.skip({"file": "x", "reason": "y"})
        assert lines(path)[-1] == {"file": "x", "reason": "y"}


def test_json_lines_survive_an_interruption(tmp_path: Path) -> None:
    def interrupted() -> None:
        with json_lines_file(tmp_path / "found.jsonl") as writer:
            writer.add({"row": 0})
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert lines(tmp_path / "found.jsonl") == [{"row": 0}]


def test_a_full_disk_names_the_json_lines_file() -> None:
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    with (
        pytest.raises(WriteError, match="cannot write /dev/full: No space left"),
        json_lines_file(Path("/dev/full")) as writer,
    ):
        writer.add({"row": 0})


# Every format beside detections.json, those of the future too.


@pytest.mark.parametrize("name", TEXT_FORMATS)
def test_a_format_survives_an_interruption(name: str, tmp_path: Path) -> None:
    path, row = tmp_path / "found", {"file": "a.png", "height": 6, "width": 8, "detections": []}
    row["detections"] = [{"class": "red", "category_id": 7, "score": 0.5, "box_xyxy": [1, 2, 3, 4]}]
    sizes = []

    def interrupted() -> None:
        with TEXT_FORMATS[name](path) as writer:
            for _ in range(2):
                writer.add(row)
                sizes.append(path.stat().st_size)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert 0 < sizes[0] < sizes[1] == path.stat().st_size, "each row is in the file as soon as it is done"


@pytest.mark.parametrize("name", TEXT_FORMATS)
def test_a_format_replaces_nothing_that_the_run_needs(name: str, model: Path, tmp_path: Path) -> None:
    path = write_image(tmp_path / "a.png")
    out = tmp_path / "out"
    for target in (path, model, out / "detections.json"):
        with pytest.raises(UserError, match=r"this run (?:reads|writes) that file.*; choose another name"):
            main([str(model), str(path), "-o", str(out), f"--{name}", str(target)])
    with pytest.raises(WriteError, match="cannot write"):
        main([str(model), str(path), "-o", str(out), f"--{name}", str(tmp_path)])
    assert decode(path).shape == (60, 80, 3)
