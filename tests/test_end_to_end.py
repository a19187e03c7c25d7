"""The whole way in miniature, by the commands a user types: data, training, export, runtime without torch, summary."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from export.verification.matching import count_unmatched
from runtime.coco import load_coco
from runtime.detections import Detections
from runtime.detector import Detector
from train.checkpoint import load_detector
from train.trainer.evaluation import TorchBackend, evaluate_distributed

ROOT = Path(__file__).parent.parent
STEPS = 120  # enough to know some of the training images by heart


def run(*arguments: object, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


IN_TURN = """
import json, runpy, sys

for module, *arguments in json.loads(sys.argv[1]):
    sys.argv = [module, *arguments]
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        assert not end.code, f"{module} ended with {end.code}"
"""


def in_turn(*commands: tuple[object, ...]) -> None:
    """Modules with their arguments, as `python -m` runs them, in one process: importing torch takes seconds."""
    run("-c", IN_TURN, json.dumps([[str(word) for word in words] for words in commands]))


def scoring(folder: Path, name: str) -> list[object]:
    shapes = folder / "shapes"
    return ["--annotations", shapes / "train.json", "--images", shapes / "train", "--json", folder / f"{name}.json"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small data set, a checkpoint of a short training, and what was exported from it."""
    folder = tmp_path_factory.mktemp("end_to_end")
    run("-m", "train.shapes", folder / "shapes", "--train", 12, "--val", 12, "--size", 128)
    in_turn(
        (
            *("train", "atss_tiny", "--out", folder / "run"),
            *("--data.train-json", folder / "shapes/train.json", "--data.train-images", folder / "shapes/train"),
            *("--schedule.steps", STEPS, "--schedule.batch", 4, "--schedule.warmup-steps", 10, "--run.log-every", 40),
            *("--preprocess.short-side", 96, "--preprocess.long-side", 128, "--augment.crop", 128, 128),
            *("--augment.short-side-min", 96, "--augment.short-side-max", 96),
            *("--run.precision", "fp32"),  # that of every processor
        ),
        ("export.to_onnx", folder / "run/last.pt", "-o", folder / "model.onnx"),
        ("train.validate", folder / "run/last.pt", *scoring(folder, "torch")),
    )
    return folder


def unlike(a: list[dict[str, Any]], b: list[dict[str, Any]]) -> float:
    """Share of the entries of two COCO results without a partner in the other."""
    sides = []
    for results in (a, b):
        boxes = np.array([r["bbox"] for r in results], np.float32).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        scores = np.array([r["score"] for r in results], np.float32)
        # A class of an image is a class of its own here, so that all images are compared at once.
        labels = np.array([100 * r["image_id"] + r["category_id"] for r in results], np.int32)
        sides.append(Detections(boxes, scores, labels))
    return (count_unmatched(*sides) + count_unmatched(*sides[::-1])) / (len(a) + len(b))


def test_deployed_ap_is_the_torch_models_without_torch(made: Path, tmp_path: Path) -> None:
    # A torch that can't be imported stands in for one that isn't installed.
    (tmp_path / "torch.py").write_text("raise ImportError('no torch on this machine')\n")
    without_torch = f"{tmp_path}{os.pathsep}{ROOT}"
    command = ("-m", "runtime.evaluate", made / "model.onnx", "--results-out", tmp_path / "found.json")
    run(*command, *scoring(made, "onnx"), PYTHONPATH=without_torch)
    torch_figures, onnx_figures = (json.loads((made / f"{name}.json").read_text()) for name in ("torch", "onnx"))
    assert torch_figures["AP"] > 0.01, "nothing was learnt, so the comparison says nothing"
    assert onnx_figures["images"] == 12

    # AP after so short a training is coarse: one box across one of ten thresholds moves it by about 0.001, and a sum in
    # another order may move it there. What was detected tells more.
    assert onnx_figures["AP"] == pytest.approx(torch_figures["AP"], abs=0.005)
    loaded = load_detector(made / "run/last.pt")
    dataset = load_coco(made / "shapes/train.json", made / "shapes/train")
    detector = Detector(TorchBackend(loaded.detector, loaded.config, loaded.classes))
    expected = list(evaluate_distributed(detector, dataset, progress=False).results)
    found = json.loads((tmp_path / "found.json").read_text())
    assert len(expected) > 100
    assert unlike(expected, found) < 0.01
    loaded.detector.mean += 3
    darker = list(evaluate_distributed(detector, dataset, progress=False).results)
    assert unlike(expected, darker) > 0.1, "three grey levels of 255"

    summary = run("scripts/quickstart_summary.py", made, 754, PYTHONPATH=str(ROOT))
    assert "12 min 34 s" in summary
    written = json.loads((made / "summary.json").read_text())
    assert written["ap_torch"] == torch_figures["AP"]
    assert written["ap_onnx"] == onnx_figures["AP"]
    assert written["seconds_total"] == 754
    assert written["images_per_second"] > 0


def test_images_are_drawn_and_a_finished_run_resumes_to_nothing(made: Path) -> None:
    before = (made / "run/log.jsonl").read_text()
    shapes = made / "shapes"
    drawn = ("--annotations", shapes / "val.json", "--images", shapes / "val", "--out", made / "assignment")
    data = ("--data.train-json", shapes / "train.json", "--data.train-images", shapes / "train")
    in_turn(
        ("train.plot", made / "run"),
        ("train.show_assignment", "atss_tiny", *drawn, "--count", 2),
        ("train", "atss_tiny", "--out", made / "run", "--resume", "--schedule.steps", STEPS, *data),
    )
    run("-m", "runtime.detect", made / "model.onnx", shapes / "val", "-o", made / "found", "--score", 0)
    images = [made / "run/curves.png", *(made / "assignment").glob("*.png"), *(made / "found").rglob("*.jpg")]
    assert len(images) >= 1 + 2 + 12
    assert all(image.stat().st_size > 1000 for image in images)
    assert (made / "run/log.jsonl").read_text() == before
