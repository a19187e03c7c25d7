"""Every command that writes, killed at many moments, and on a disk that fills up.

After a kill every output is an earlier one or whole, and the next run succeeds and removes what was left. A full disk
is one line and exit code 2, and costs no earlier output. `TRIALS` has an entry for each command; `-m slow` tries every
moment instead of a few.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import cv2
import pytest

from runtime import cli
from runtime.manifest import Preprocess, Thresholds
from train.config.recipes import atss_tiny

from .runtime.coco.test_evaluate import make_dataset
from .support.fakes import write_red_onnx
from .support.killing import Runner, Trial, all_conditions, few, few_conditions, fill, fill_disk, kill
from .support.systems import narrowed, saved

DATA = "--annotations val.json --images images"
TRAIN = (
    "best.pt --data.train-json val.json --data.train-images images --schedule.steps 2 --schedule.batch 1 "
    "--data.workers 0 --run.device cpu --run.precision fp32 --run.checkpoint-every 1 --out out/run"
)


TRIALS = {
    "train": [Trial(TRAIN, "run/last.pt run/log.jsonl", f"{TRAIN} --resume", replaces=False)],
    "inspect": [Trial("val.json --images images -o out/s.jpg --json out/i.json", "s.jpg i.json")],
    "convert": [Trial("val.json -o out/c.json", "c.json")],
    "validate": [Trial("best.pt --annotations labelled.json --images images --json out/v.json", "v.json")],
    "plot": [Trial("out", "curves.png")],
    "show-assignment": [Trial(f"atss_tiny {DATA} --count 1 --out out", "assignment_1.png")],
    "show-batch": [
        Trial(
            "atss_tiny --data.train-json val.json --data.train-images images --schedule.batch 2 -o out/b.png", "b.png"
        )
    ],
    "shapes": [
        Trial("out/set --train 3 --val 1 --size 64", "set/train.json set/val.json set/shapes.json", replaces=False)
    ],
    "detect": [
        Trial(
            "m.onnx images -o out --jsonl out/a.jsonl --parquet out/a.parquet",
            "detections.json 0.jpg 1.jpg a.jsonl a.parquet",
        ),
        Trial("m.onnx film.avi -o out", "detections.json film.mp4"),
    ],
    "evaluate": [
        Trial(f"m.onnx {DATA} --json out/m.json --results-out out/r.json", "m.json r.json"),
        Trial(f"m.onnx {DATA} --results-out out/r.parquet", "r.parquet"),
        Trial(f"m.onnx {DATA} --shard 0/1 --results-out out/part.json", "part.json"),
        Trial(f"m.onnx {DATA} --json out/m.json --report out/r.html", "m.json r.html"),
    ],
    "report": [
        Trial(f"m.onnx {DATA} --resamples 20 -o out/r.html --card out/c.md", "r.html c.md"),
    ],
    "show": [Trial(f"results.json {DATA} --out out", "0_1.jpg 1_2.jpg")],
    "benchmark": [
        Trial("m.onnx --images images --rounds 1 --batch 1 --json out/b.json --plot out/b.png", "b.json b.png")
    ],
    "loadgen": [
        Trial(
            f"m.onnx --scenario SingleStream --accuracy --seconds 0.1 {DATA} -o out",
            "settings.json results.json result.json",
        )
    ],
}
ELSEWHERE = {
    "pretrained": "writes with save_checkpoint, as train does; downloads are killed in tests/train/pretrained",
    "reproduce": "runs trainings in processes, which are killed in tests/train/reproduce",
    **dict.fromkeys(
        ("export", "quantize", "engine", "deepstream", "triton", "verify"), "tests/export/test_killed_exports.py"
    ),
    **dict.fromkeys(("doctor", "packages"), "writes no file"),
}
LIBRARIES = [name for name in ("matplotlib.pyplot", "onnxruntime", "pyarrow.parquet") if find_spec(name.split(".")[0])]
CASES = [(command, trial) for command, trials in TRIALS.items() for trial in trials]
NAMES = [f"{command}-{trial.files.split()[-1]}" for command, trial in CASES]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The inputs of all commands."""
    pytest.importorskip("onnx", reason="builds the test's graph")
    made = tmp_path_factory.mktemp("killed")
    make_dataset(made, [(60, 80), (60, 80)])
    (made / "set.json").rename(made / "val.json")
    content = json.loads((made / "val.json").read_text())
    content["categories"] = [{"id": number, "name": name} for number, name in ((1, "a"), (2, "b"), (7, "c"))]
    (made / "labelled.json").write_text(json.dumps(content))  # with the checkpoint's classes
    write_red_onnx(made / "m.onnx")
    saved(narrowed(atss_tiny().model), Thresholds(), Preprocess(short_side=64, long_side=96), made / "best.pt")
    results = [{"image_id": 1, "category_id": 7, "bbox": [8, 12, 60, 40], "score": 0.9}]
    (made / "results.json").write_text(json.dumps(results))
    losses = {"classification": 1, "box": 1, "centerness": 1}
    (made / "log.jsonl").write_text(json.dumps({"kind": "train", "step": 1, **losses}) + "\n")
    writer = cv2.VideoWriter(str(made / "film.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 5, (80, 60))
    for number in range(3):
        writer.write(cv2.imread(str(made / "images" / f"{number % 2}.png")))
    writer.release()
    return made


@pytest.fixture(scope="module")
def runner(folder: Path) -> Iterator[Runner]:
    running = Runner(folder, ["train.api", "train.trainer.evaluation", "runtime.coco.command", *LIBRARIES])
    yield running
    running.close()


@pytest.mark.parametrize(("command", "trial"), CASES, ids=NAMES)
def test_a_kill_leaves_old_or_whole_outputs_and_the_next_run_cleans_up(
    command: str, trial: Trial, runner: Runner
) -> None:
    kill(runner, command, trial, few)


@pytest.mark.slow
@pytest.mark.parametrize(("command", "trial"), CASES, ids=NAMES)
def test_a_kill_at_every_moment(command: str, trial: Trial, runner: Runner) -> None:
    kill(runner, command, trial, lambda count: list(range(1, count + 1)))


@pytest.mark.parametrize(("command", "trial"), CASES, ids=NAMES)
def test_a_full_disk_is_one_line_and_costs_no_earlier_output(command: str, trial: Trial, runner: Runner) -> None:
    fill(runner, command, trial, few_conditions)


@pytest.mark.slow
@pytest.mark.parametrize(("command", "trial"), CASES, ids=NAMES)
def test_a_disk_that_is_full_at_every_moment(command: str, trial: Trial, runner: Runner) -> None:
    fill(runner, command, trial, all_conditions)


@pytest.mark.slow
@pytest.mark.parametrize(("command", "trial"), CASES, ids=NAMES)
def test_a_small_disk_that_is_really_full(command: str, trial: Trial, runner: Runner) -> None:
    fill_disk(runner, command, trial)


def test_every_command_has_its_entry() -> None:
    assert TRIALS.keys() | ELSEWHERE.keys() == cli.COMMANDS.keys()
    assert not TRIALS.keys() & ELSEWHERE.keys()
