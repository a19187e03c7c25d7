"""The commands of `export`, killed at moments and on a disk that fills up, as in tests/test_killed_commands.py."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import cv2
import numpy as np
import pytest

from ..support.killing import (
    Runner,
    Trial,
    all_conditions,
    few,
    few_conditions,
    fill,
    fill_disk,
    kill,
    kill_and_fill_once,
)
from .conftest import Exported

TRIALS = {
    "quantize": [Trial("m.onnx --precision fp16 -o out/m.fp16.onnx", "m.fp16.onnx")],
    "deepstream": [
        Trial("m.onnx -o out/deep", "deep/model.onnx deep/labels.txt deep/config_infer_primary.txt", replaces=False)
    ],
    "triton": [
        Trial(
            "m.onnx -o out/repository --name m",
            "repository/m/config.pbtxt repository/m_network/1/model.onnx",
            replaces=False,
        )
    ],
}
LONG = {
    "export": [Trial("best.pt -o out/m.onnx --batch-max 2", "m.onnx")],
    "quantize": [
        Trial(
            "m.onnx --precision int8 --images images -o out/m.int8.onnx --calibration out/c.json", "m.int8.onnx c.json"
        )
    ],
    "engine": [
        Trial(
            "m.onnx -o out/m.engine --flavor rtx --compute-capability 8.6 --batch 1 1 1 --shapes 192x256",
            "m.engine m.engine.json",
            room=300 << 20,
        )
    ],
}
CASES = [(command, trial) for command, trials in TRIALS.items() for trial in trials]
NAMES = [command for command, _ in CASES]
LONG_CASES = [(command, trial) for command, trials in LONG.items() for trial in trials]


@pytest.fixture(scope="module")
def runner(exported: Exported, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runner]:
    folder = tmp_path_factory.mktemp("killed")
    shutil.copy(exported.model, folder / "m.onnx")
    shutil.copy(exported.checkpoint, folder / "best.pt")
    (folder / "images").mkdir()
    for number in range(2):
        image = np.random.default_rng(number).integers(0, 256, (192, 256, 3), np.uint8)
        cv2.imwrite(str(folder / "images" / f"{number}.png"), image)
    running = Runner(folder, ["onnxruntime", "export.api", "export.onnx_model.network"])
    yield running
    running.close()


@pytest.mark.parametrize(("command", "trial"), CASES, ids=NAMES)
def test_a_kill_leaves_old_or_whole_outputs_and_the_next_run_cleans_up(
    command: str, trial: Trial, runner: Runner
) -> None:
    kill(runner, command, trial, few)


@pytest.mark.parametrize(("command", "trial"), CASES, ids=NAMES)
def test_a_full_disk_is_one_line_and_costs_no_earlier_output(command: str, trial: Trial, runner: Runner) -> None:
    fill(runner, command, trial, lambda count, largest: few_conditions(count, largest)[1:4])


@pytest.mark.parametrize(
    ("command", "trial"),
    [
        pytest.param(command, trial, marks=pytest.mark.slow if command == "export" else [], id=command)
        for command, trial in LONG_CASES
    ],
)
def test_a_kill_in_the_middle_and_a_full_disk_of_what_takes_long(command: str, trial: Trial, runner: Runner) -> None:
    if command == "engine":
        pytest.importorskip("tensorrt_rtx", reason="builds the engine")
    kill_and_fill_once(runner, command, trial)


@pytest.mark.slow
@pytest.mark.parametrize(("command", "trial"), CASES + LONG_CASES)
def test_every_moment(command: str, trial: Trial, runner: Runner) -> None:
    if command == "engine":
        pytest.importorskip("tensorrt_rtx", reason="builds the engine")
    kill(runner, command, trial, lambda count: list(range(1, count + 1)))
    fill(runner, command, trial, all_conditions)


@pytest.mark.slow
@pytest.mark.parametrize(("command", "trial"), CASES + LONG_CASES)
def test_a_small_disk_that_is_really_full(command: str, trial: Trial, runner: Runner) -> None:
    if command == "engine":
        pytest.importorskip("tensorrt_rtx", reason="builds the engine")
    fill_disk(runner, command, trial)
