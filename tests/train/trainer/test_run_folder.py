"""One run at a time works in a folder, and none writes over what it reads. A full disk ends a run with one line."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from runtime.files import WriteError
from runtime.outputs import OutputError, alone_in
from runtime.training_log import LOG, read_log
from train.config import Config
from train.loss.criterion import Losses
from train.trainer import run_folder
from train.trainer.loop import train_detector
from train.trainer.run_log import RunLog
from train.trainer.start import BEST, LAST

Make = Callable[..., Config]
ROOT = Path(__file__).parents[3]


def test_a_second_run_in_the_folder_is_refused_before_it_writes(small_config: Make, tmp_path: Path) -> None:
    for resume in (False, True):
        with alone_in(tmp_path), pytest.raises(OutputError, match=r"another run is working here \(process \d+ on "):
            train_detector(small_config(steps=1), tmp_path, resume)
    assert [path.name for path in tmp_path.iterdir()] == ["lock"]
    assert train_detector(small_config(steps=1), tmp_path).last.exists()


def test_processes_that_torchrun_starts_anew_wait_for_those_that_end(
    small_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "job 7")
    begun, ended = threading.Event(), []

    def end_later() -> None:
        with alone_in(tmp_path):
            begun.set()
            time.sleep(0.5)
            ended.append(time.monotonic())

    thread = threading.Thread(target=end_later)
    thread.start()
    begun.wait()
    assert train_detector(small_config(steps=1), tmp_path).last.exists()
    thread.join()
    assert ended
    monkeypatch.setattr(run_folder, "RESTART_WAIT_S", 0.1)
    with alone_in(tmp_path), pytest.raises(OutputError, match="another run"):
        train_detector(small_config(steps=1), tmp_path)


@pytest.mark.parametrize("name", [LAST, BEST, LOG])
@pytest.mark.parametrize("reads", ["init", "train_json", "weights"])
def test_a_run_does_not_write_over_what_it_reads(small_config: Make, tmp_path: Path, name: str, reads: str) -> None:
    config = small_config(steps=1)
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "run").mkdir()
    os.link(tmp_path / "precious", tmp_path / "run" / name)
    source = str(tmp_path / "precious")
    match reads:
        case "init":
            config = replace(config, run=replace(config.run, init=source))
        case "train_json":
            config = replace(config, data=replace(config.data, train_json=source))
        case "weights":
            backbone = replace(config.model.backbone, weights=source)
            config = replace(config, model=replace(config.model, backbone=backbone))
    with pytest.raises(OutputError, match=rf"--out .*{name}: this run reads that file, as .*precious; choose another"):
        train_detector(config, tmp_path / "run")
    assert (tmp_path / "precious").read_text() == "precious"
    assert [path.name for path in (tmp_path / "run").iterdir()] == [name]


def one_step(log: RunLog, step: int) -> None:
    one = torch.tensor(1.0)
    log.step(step, Losses(*[one for _ in Losses._fields]), one, 0.1, 3.0)


def test_a_log_that_cannot_be_written_ends_the_run_in_one_line(tmp_path: Path) -> None:
    class Full:
        def write(self, data: bytes) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

        def close(self) -> None:
            pass

    with RunLog(tmp_path, 0) as log:
        one_step(log, 1)
        log.file.close()
        log.file = Full()  # type: ignore[assignment]
        with pytest.raises(WriteError, match=r"cannot write .*log.jsonl: No space left on device; free some space"):
            one_step(log, 2)
    assert [line["step"] for line in read_log(tmp_path / LOG)] == [1]


def test_a_full_disk_for_tensorboard_is_a_warning_and_the_log_goes_on(tmp_path: Path) -> None:
    """In a process of its own, whose files end at 1200 bytes: the log is shorter than TensorBoard's file."""
    script = (
        "import resource, sys, time; from pathlib import Path\n"
        "from tests.train.trainer.test_run_folder import one_step\n"
        "from train.trainer.run_log import RunLog\n"
        "with RunLog(Path(sys.argv[1]), 0) as log:\n"
        "    resource.setrlimit(resource.RLIMIT_FSIZE, (1200, resource.RLIM_INFINITY))\n"
        "    for step in range(1, 8):\n"
        "        one_step(log, step)\n"
        "        time.sleep(0.05)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=200,
    )
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    assert said.count("warning: cannot write TensorBoard's files: File too large; log.jsonl has the same numbers") == 1
    assert "Traceback" not in said
    assert [line["step"] for line in read_log(tmp_path / LOG)] == list(range(1, 8))
