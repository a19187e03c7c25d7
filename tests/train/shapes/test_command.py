"""`python -m train.shapes`: what it prints, and what a killed process leaves behind."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

from train.shapes import Settings, generate


def test_a_killed_generation_never_looks_complete(tmp_path: Path) -> None:
    out = tmp_path / "set"
    command = [sys.executable, "-m", "train.shapes", str(out), "--train", "5000", "--val", "1", "--size", "64"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 30
        while not list(tmp_path.glob(".set.*.tmp/train/000005.jpg")):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not out.exists()
    assert generate(out, Settings(2, 1, size=64), progress=False)  # what the dead run left is not in the way


def test_command_line_says_what_it_did_in_one_line(tmp_path: Path) -> None:
    options = ["--train", "2", "--val", "1", "--size", "64"]
    command = [sys.executable, "-m", "train.shapes", str(tmp_path / "set"), *options]
    first = subprocess.run(command, capture_output=True, text=True, check=True)
    assert first.stdout.startswith("wrote 2 training and 1 validation images to ")
    second = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "already complete" in second.stdout
    refused = subprocess.run([*command, "--seed", "9"], capture_output=True, text=True, check=False)
    assert refused.returncode == 2
    assert refused.stderr.startswith("error: ")
    assert refused.stderr.count("\n") == 1
