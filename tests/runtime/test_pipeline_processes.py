"""A pipeline whose process is interrupted, or which is abandoned: neither keeps a process alive."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

INTERRUPTED = """
import threading, time
from runtime.pipeline import PipelineSettings, run_pipeline

def slow(batch):
    time.sleep(0.01)
    return batch

try:
    for item in run_pipeline(range(10**9), lambda i: i, lambda i: 0, slow, PipelineSettings()):
        if item == 20:
            print("running", flush=True)
except KeyboardInterrupt:
    left = [t.name for t in threading.enumerate() if t.name.startswith("pipeline")]
    print("interrupted", left, flush=True)
"""

ABANDONED = """
from runtime.pipeline import PipelineSettings, run_pipeline
results = run_pipeline(iter(int, 1), lambda i: i, lambda i: 0, lambda batch: batch, PipelineSettings())
next(results)
print("leaving", flush=True)
"""


@pytest.mark.skipif(os.name != "posix", reason="sends SIGINT")
def test_ctrl_c_leaves_no_thread(repository: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", INTERRUPTED], cwd=repository, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "running\n"
    time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    rest, _ = process.communicate(timeout=20)
    assert rest == "interrupted []\n"
    assert process.returncode == 0


def test_a_pipeline_that_is_left_half_way_does_not_keep_the_process(repository: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", ABANDONED], cwd=repository, capture_output=True, text=True, timeout=20, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "leaving\n", "")
