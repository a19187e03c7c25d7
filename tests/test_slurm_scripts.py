"""The Slurm scripts, with stand-ins for Slurm's commands."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from runtime.coco.command import main as evaluate
from runtime.training_log import LOG, read_log

from .runtime.coco.test_evaluate import make_dataset
from .support.fakes import write_red_onnx

ROOT = Path(__file__).parent.parent
# A job's step on two nodes: both run the command at the same time, and the step fails if either does.
SRUN = '#!/bin/bash\n"$@" & first=$!\n"$@" & second=$!\nwait $first && wait $second\n'
SCONTROL = '#!/bin/bash\n[ "$1 $2 $3" = "show hostnames localhost,other" ] && printf "localhost\\nother\\n"\n'


def run(script: str, arguments: list[str], folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """A script as sbatch runs it: a copy of it elsewhere, in the folder of the submission."""
    tools = folder / "tools"
    tools.mkdir(exist_ok=True)
    for name, text in {
        "srun": SRUN,
        "scontrol": SCONTROL,
        "python": f'#!/bin/bash\nexec {sys.executable} "$@"\n',
    }.items():
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    shutil.copy(ROOT / "scripts" / script, tools / "slurm_script")
    return subprocess.run(
        [tools / "slurm_script", *arguments],
        cwd=folder,
        env={
            **os.environ,
            "PATH": f"{tools}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
            "CUDA_VISIBLE_DEVICES": "",
            **variables,
        },
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_the_parts_of_an_array_make_the_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("onnx", reason="builds the test's graph")
    model, dataset = write_red_onnx(tmp_path / "red.onnx"), make_dataset(tmp_path / "data")
    shared = [
        "--annotations",
        str(dataset.json_path),
        "--images",
        str(dataset.root),
        "--backend",
        "cpu",
        "--batch",
        "2",
    ]
    for task in ("0", "1", "2"):
        done = run(
            "slurm_evaluate.sh",
            [str(model), *shared],
            tmp_path,
            SLURM_ARRAY_TASK_ID=task,
            SLURM_ARRAY_TASK_COUNT="3",
        )
        assert done.returncode == 0, done.stderr
    parts = sorted(map(str, (tmp_path / "parts").iterdir()))
    assert [Path(part).name for part in parts] == ["part0.json", "part1.json", "part2.json"]
    assert evaluate(["--results", *parts, "--annotations", str(dataset.json_path), "--json", str(tmp_path / "m")]) == 0
    assert evaluate([str(model), *shared, "--json", str(tmp_path / "w")]) == 0
    merged, whole = (json.loads((tmp_path / name).read_text()) for name in "mw")
    assert {k: v for k, v in merged.items() if "second" not in k} == {
        k: v for k, v in whole.items() if "second" not in k
    }


@pytest.mark.slow
def test_two_nodes_meet_train_and_go_on_when_the_job_is_queued_again(tmp_path: Path) -> None:
    drawn = [sys.executable, "-m", "train.shapes", "shapes", "--train", "8", "--val", "2", "--size", "64"]
    subprocess.run(drawn, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True, capture_output=True)
    small = ["--preprocess.short-side", "64", "--preprocess.long-side", "64", "--augment.crop", "64", "64"]
    small += ["--augment.short-side-min", "64", "--augment.short-side-max", "64", "--run.precision", "fp32"]
    small += ["--schedule.batch", "2", "--schedule.warmup-steps", "1", "--run.log-every", "1", "--data.workers", "0"]
    small += ["--data.train-json", "shapes/train.json", "--data.train-images", "shapes/train", "--run.device", "cpu"]
    for steps in ("2", "4"):  # the second time is the job queued again: it finds its own number in --out
        done = run(
            "slurm_train.sh",
            ["atss_tiny", "--out", "runs/two", *small, "--schedule.steps", steps],
            tmp_path,
            SLURM_JOB_NODELIST="localhost,other",
            SLURM_JOB_NUM_NODES="2",
            SLURM_JOB_ID="4711",
            PROCESSES_PER_NODE="1",
        )
        assert done.returncode == 0, done.stderr
        assert "2 × cpu" in done.stdout + done.stderr
    lines = [line["step"] for line in read_log(tmp_path / "runs/two" / LOG) if line["kind"] == "train"]
    assert lines == [1, 2, 3, 4]
    other = run(
        "slurm_train.sh",
        ["atss_tiny", "--out", "runs/two", *small, "--schedule.steps", "5"],
        tmp_path,
        SLURM_JOB_NODELIST="localhost,other",
        SLURM_JOB_NUM_NODES="2",
        SLURM_JOB_ID="4712",
        PROCESSES_PER_NODE="1",
        MAX_RESTARTS="1",
    )
    assert other.returncode != 0, "another job's run is not continued"
    assert "add --resume" in other.stderr
