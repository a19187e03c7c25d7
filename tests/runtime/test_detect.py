from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

from runtime import detect as command
from runtime.detect import main
from runtime.errors import UserError
from runtime.images import decode
from runtime.images.sources import find_sources
from runtime.manifest import InputShapes

from ..support.fakes import manifest_with, red_image, write_red_onnx

pytest.importorskip("onnx", reason="builds the test's graph")
pytest.importorskip("onnxruntime", reason="runs it")


def write_image(path: Path, height: int = 60, width: int = 80, box=(10, 20, 50, 40)) -> Path:  # type: ignore[no-untyped-def]
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), red_image(height, width, box)[..., ::-1])
    return path


def write_video(path: Path, frames: int = 7, noise: int = 0) -> Path:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), 10, (160, 128))
    rng = np.random.default_rng(0)
    if not writer.isOpened():
        pytest.skip("this OpenCV cannot encode a video")
    for number in range(frames):
        frame = red_image(128, 160, (16 + 8 * number, 32, 80 + 8 * number, 96))
        frame[..., 1:] += rng.integers(0, noise + 1, (128, 160, 2), dtype=np.uint8)  # hard to compress
        writer.write(frame[..., ::-1].copy())
    writer.release()
    return path


def found(out: Path) -> dict:
    return json.loads((out / "detections.json").read_text(encoding="utf-8"))


def test_a_folder_with_one_bad_image(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    write_image(folder / "a.png")
    write_image(folder / "sub" / "größe.jpg", 90, 50, (5, 10, 45, 80))
    write_image(folder / "nothing.PNG", box=None)
    (folder / "bad.jpg").write_bytes(b"\xff\xd8\xff\xe0")
    (folder / "notes.txt").write_text("no image")
    assert main([str(model), str(folder), "-o", str(out), "--batch", "2"]) == 0
    content = found(out)
    assert content["complete"] is True
    assert content["classes"] == ["red", "other"]
    rows = {Path(row["file"]).name: row for row in content["images"]}
    assert list(rows) == ["a.png", "nothing.PNG", "größe.jpg"]
    (one,) = rows["a.png"]["detections"]
    assert (one["class"], one["category_id"]) == ("red", 7)
    assert one["score"] == pytest.approx(0.9)
    np.testing.assert_allclose(one["box_xyxy"], [10, 20, 50, 40], atol=1)
    assert (rows["größe.jpg"]["height"], rows["größe.jpg"]["width"]) == (90, 50)
    assert rows["nothing.PNG"]["detections"] == []
    assert [Path(entry["file"]).name for entry in content["skipped"]] == ["bad.jpg"]
    assert "truncated" in content["skipped"][0]["reason"]
    printed = capsys.readouterr()
    assert "warning: skipped" in printed.err
    assert "warning: 1 of 4 inputs were skipped" in printed.err
    assert "3 images in" in printed.out
    drawn = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    assert drawn == {"a.jpg", "nothing.jpg", "sub/größe.jpg", "detections.json"}
    before = red_image()
    after = decode(out / "a.jpg")
    assert after.shape == before.shape
    assert np.abs(after.astype(int) - before).max() > 100  # something was drawn


def test_results_are_those_of_the_images_alone(model: Path, tmp_path: Path) -> None:
    paths = [write_image(tmp_path / f"{i}.png", 60 + 20 * (i % 3), 80, (10 + i, 20, 50, 40)) for i in range(7)]
    main([str(model), *map(str, paths), "-o", str(tmp_path / "all"), "--batch", "4", "--json-only"])
    together = found(tmp_path / "all")["images"]
    assert [row["file"] for row in together] == [str(path) for path in paths]
    for path, row in zip(paths, together, strict=True):
        main([str(model), str(path), "-o", str(tmp_path / "one"), "--json-only"])
        assert found(tmp_path / "one")["images"] == [row]
    assert [path.name for path in (tmp_path / "all").iterdir()] == ["detections.json"]


def test_the_score_is_a_threshold(model: Path, tmp_path: Path) -> None:
    path = write_image(tmp_path / "a.png")
    for score, count in (("0.85", 1), ("0.95", 0)):
        main([str(model), str(path), "-o", str(tmp_path / "out"), "--score", score])
        assert len(found(tmp_path / "out")["images"][0]["detections"]) == count


def test_only_the_chosen_classes(model: Path, tmp_path: Path) -> None:
    path = write_image(tmp_path / "a.png")
    for chosen, count in ((["7"], 1), (["red"], 1), (["9"], 0), (["other", "7"], 1)):
        main([str(model), str(path), "-o", str(tmp_path / "out"), "--classes", *chosen])
        content = found(tmp_path / "out")
        assert len(content["images"][0]["detections"]) == count
        assert content["kept_category_ids"] == [{"7": 7, "red": 7, "9": 9, "other": 9}[name] for name in chosen]
    with pytest.raises(UserError, match=r"class 'cat': no such category in .*; known: 7 red, 9 other$"):
        main([str(model), str(path), "-o", str(tmp_path / "out"), "--classes", "cat"])


def test_a_video_has_the_same_filter(model: Path, tmp_path: Path) -> None:
    video = write_video(tmp_path / "film.mp4")
    for chosen, count in (("7", 1), ("9", 0)):
        main([str(model), str(video), "-o", str(tmp_path / "out"), "--json-only", "--classes", chosen])
        assert {len(row["detections"]) for row in found(tmp_path / "out")["images"]} == {count}


def test_a_second_run_does_not_detect_on_the_drawn_images(model: Path, tmp_path: Path) -> None:
    write_image(tmp_path / "a.png")
    for _ in range(2):
        main([str(model), str(tmp_path), "-o", str(tmp_path / "out")])
        assert len(found(tmp_path / "out")["images"]) == 1


def test_the_source_is_not_replaced(model: Path, tmp_path: Path) -> None:
    path = write_image(tmp_path / "a.jpg")
    before = path.read_bytes()
    with pytest.raises(UserError, match="this run reads that file"):
        main([str(model), str(path), "-o", str(tmp_path)])
    assert path.read_bytes() == before
    assert not (tmp_path / "detections.json").exists()


def test_names_that_meet_are_numbered(tmp_path: Path) -> None:
    paths = [write_image(tmp_path / name) for name in ("x/a.png", "y/a.jpg", "z/A.png")]
    write_image(tmp_path / "x" / "a.jpg")
    said: list[str] = []
    sources = find_sources([*paths, tmp_path / "x"], tmp_path / "out", said.append)
    assert [source.name for source in sources] == ["a", "a-2", "A-3", "a-4"]
    assert sources[-1].path == tmp_path / "x" / "a.jpg", "x/a.png was named already"
    assert said == [f"{tmp_path / 'x'}: left out 1 × brought by another input already"]


def test_inputs_that_lead_nowhere(model: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"no image or video in this folder; looked for .jpg"):
        main([str(model), str(tmp_path / "empty"), "-o", str(tmp_path / "out")])
    with pytest.raises(UserError, match=r"none of the 2 inputs could be read; the first: .*no\.jpg: cannot read"):
        main([str(model), str(tmp_path / "no.jpg"), str(tmp_path / "no.mp4"), "-o", str(tmp_path / "out")])
    assert not (tmp_path / "out" / "detections.json").exists()


def test_a_video(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    video = write_video(tmp_path / "film.mp4")
    (tmp_path / "broken.mp4").write_bytes(video.read_bytes()[:300])
    out = tmp_path / "out"
    assert main([str(model), str(video), str(tmp_path / "broken.mp4"), "-o", str(out), "--batch", "3"]) == 0
    content = found(out)
    assert [row["frame"] for row in content["images"]] == list(range(7))
    assert [row["time_s"] for row in content["images"]] == pytest.approx([n / 10 for n in range(7)])
    for number, row in enumerate(content["images"]):
        (one,) = row["detections"]
        np.testing.assert_allclose(one["box_xyxy"], [16 + 8 * number, 32, 80 + 8 * number, 96], atol=4)
    assert [Path(entry["file"]).name for entry in content["skipped"]] == ["broken.mp4"]
    capture = cv2.VideoCapture(str(out / "film.mp4"))
    assert int(capture.get(cv2.CAP_PROP_FRAME_COUNT)) == 7
    assert capture.get(cv2.CAP_PROP_FPS) == pytest.approx(10)
    capture.release()
    assert sorted(path.name for path in out.iterdir()) == ["detections.json", "film.mp4"]


@pytest.mark.skipif(os.name != "posix", reason="sends SIGINT")
def test_ctrl_c_writes_what_is_done(model: Path, tmp_path: Path, repository: Path) -> None:
    first, out = write_image(tmp_path / "in" / "0000.png"), tmp_path / "out"
    for number in range(1, 4000):
        os.link(first, first.with_name(f"{number:04}.png"))
    process = subprocess.Popen(
        [sys.executable, "-m", "runtime.detect", str(model), str(first.parent), "-o", str(out), "--batch", "2"],
        cwd=repository,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 60
    while not (out / "0020.jpg").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 130
    assert said.splitlines() == ["interrupted"]
    content = found(out)
    names = [Path(row["file"]).name for row in content["images"]]
    assert 5 < len(names) < 4000
    assert names == [f"{number:04}.png" for number in range(len(names))]
    assert content["complete"] is False


def test_an_image_that_the_graph_does_not_take_is_skipped(tmp_path: Path) -> None:
    shapes = InputShapes(batch_min=1, batch_max=2, height_min=32, height_max=96, width_min=32, width_max=96)
    model = write_red_onnx(tmp_path / "small.onnx", manifest_with(inputs=shapes))
    good, wide = write_image(tmp_path / "good.png"), write_image(tmp_path / "wide.png", 60, 200)
    assert main([str(model), str(wide), str(good), "-o", str(tmp_path / "out")]) == 0
    assert [Path(row["file"]).name for row in found(tmp_path / "out")["images"]] == ["good.png"]
    (skipped,) = found(tmp_path / "out")["skipped"]
    assert "an image of 200×60 needs a canvas of 128×64" in skipped["reason"]
    with pytest.raises(UserError, match="batch 3, but the graph was exported for 1 to 2"):
        main([str(model), str(good), "-o", str(tmp_path / "out"), "--batch", "3"])


def run(*options: object, repository: Path, limit_bytes: int | None = None) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own; `limit_bytes` caps the files it writes, as a full disk would."""
    limit = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({limit_bytes}, {limit_bytes}))\n"
    code = (limit if limit_bytes else "") + "import runpy; runpy.run_module('runtime.detect', run_name='__main__')"
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, options)],
        cwd=repository,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_disk_that_fills_up(model: Path, tmp_path: Path, repository: Path) -> None:
    pytest.importorskip("resource", reason="limits the size of files")
    small, out = write_image(tmp_path / "0.png"), tmp_path / "out"
    large = tmp_path / "1.png"
    cv2.imwrite(str(large), np.random.default_rng(0).integers(0, 255, (300, 400, 3), dtype=np.uint8))
    options = [model, small, large, "-o", out, "--batch", "1"]
    done = run(*options, repository=repository, limit_bytes=10_000)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith(f"error: cannot write {out / '1.jpg'}: ")
    assert "Traceback" not in done.stderr
    content = found(out)
    assert [Path(row["file"]).name for row in content["images"]] == ["0.png"]
    assert content["complete"] is False
    assert sorted(path.name for path in out.iterdir()) == ["0.jpg", "detections.json"]
    assert run(*options, repository=repository).returncode == 0


def test_a_disk_that_fills_up_under_a_video(model: Path, tmp_path: Path, repository: Path) -> None:
    """OpenCV's writer reports nothing: the file is found to be incomplete afterwards."""
    pytest.importorskip("resource", reason="limits the size of files")
    video, out = write_video(tmp_path / "film.mp4", 30, noise=100), tmp_path / "out"
    done = run(model, video, "-o", out, repository=repository, limit_bytes=20_000)
    assert done.returncode == 2
    assert f"error: cannot write {out / 'film.mp4'}: the video is incomplete" in done.stderr
    assert len(found(out)["images"]) == 30
    assert found(out)["complete"] is False
    assert [path.name for path in out.iterdir()] == ["detections.json"]


def test_bad_input_from_the_command_line_is_one_line(model: Path, tmp_path: Path, repository: Path) -> None:
    for options in (
        (tmp_path / "no.onnx", write_image(tmp_path / "a.png")),
        (tmp_path / "a.png", tmp_path / "a.png"),
    ):
        done = run(*options, "-o", tmp_path / "out", repository=repository)
        assert done.returncode == 2
        assert done.stderr.startswith("error: ")
        assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("more", [["--batch", "0"], ["--score", "1.5"], ["--nonsense"]])
def test_wrong_usage(model: Path, more: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        command.main([str(model), "x.jpg", *more])
    assert caught.value.code == 2
