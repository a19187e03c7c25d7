"""The whole way in miniature, by the commands a user types: data, training, export, runtime without torch, summary."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
STEPS = 120  # enough to know some of the training pictures by heart


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
        ),
        ("export.to_onnx", folder / "run/last.pt", "-o", folder / "model.onnx"),
        ("train.validate", folder / "run/last.pt", *scoring(folder, "torch")),
    )
    return folder


def test_deployed_ap_is_the_torch_models_without_torch(made: Path, tmp_path: Path) -> None:
    # A torch that can't be imported stands in for one that isn't installed.
    (tmp_path / "torch.py").write_text("raise ImportError('no torch on this machine')\n")
    without_torch = f"{tmp_path}{os.pathsep}{ROOT}"
    run("-m", "runtime.evaluate", made / "model.onnx", *scoring(made, "onnx"), PYTHONPATH=without_torch)
    torch_figures, onnx_figures = (json.loads((made / f"{name}.json").read_text()) for name in ("torch", "onnx"))
    assert torch_figures["AP"] > 0.01, "nothing was learnt, so the comparison says nothing"
    assert onnx_figures["AP"] == pytest.approx(torch_figures["AP"], abs=0.001)
    assert onnx_figures["images"] == 12

    summary = run("scripts/quickstart_summary.py", made, 754, PYTHONPATH=str(ROOT))
    assert "12 min 34 s" in summary
    written = json.loads((made / "summary.json").read_text())
    assert written["ap_torch"] == torch_figures["AP"]
    assert written["ap_onnx"] == onnx_figures["AP"]
    assert written["seconds_total"] == 754
    assert written["images_per_second"] > 0


def test_pictures_are_drawn_and_a_finished_run_resumes_to_nothing(made: Path) -> None:
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
    pictures = [made / "run/curves.png", *(made / "assignment").glob("*.png"), *(made / "found").rglob("*.jpg")]
    assert len(pictures) >= 1 + 2 + 12
    assert all(picture.stat().st_size > 1000 for picture in pictures)
    assert (made / "run/log.jsonl").read_text() == before
