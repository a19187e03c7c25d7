"""The reproduction: order of the trainings, resumption, budget, failures, and the report's numbers."""

from __future__ import annotations

import json
import math
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from runtime.errors import UserError
from runtime.outputs import alone_in
from train.checkpoint import read_checkpoint
from train.config import Config, Model
from train.config.check import check_config
from train.geometry.anchors import anchor_sides
from train.reproduce import report
from train.reproduce import run as reproduce_run
from train.reproduce.rows import mean_and_spread
from train.reproduce.run import RESULT, Result, job_folder, read_result, run, write_result
from train.reproduce.systems import SIDE, Job, jobs, systems

Make = Callable[..., Config]


def tiny_jobs(
    make: Make, shapes_set: Path, keys: tuple[str, ...] = ("iou-box", "atss-box"), steps: int = 6
) -> list[Job]:
    """Trainings that take seconds, evaluated on 4 images."""
    config = make(steps=steps)
    config = replace(
        config,
        data=replace(config.data, val_json=str(shapes_set / "val.json"), val_images=str(shapes_set / "val")),
        run=replace(config.run, evaluate_every=steps, checkpoint_every=1),
    )
    return [Job(system, 0, config) for system in systems() if system.key in keys]


def put(out: Path, job: Job, ap: float | None, error: str = "") -> None:
    """A result as a training would have left it."""
    metrics = {} if ap is None else {"AP": ap, "AP50": min(1.0, ap + 0.2), "AP75": ap - 0.1}
    write_result(job_folder(out, job), Result(metrics, error))


def test_a_run_that_is_cut_short_has_complete_seeds_and_the_crossings_first() -> None:
    found = jobs(Path("data"), Path("backbone.pt"), seeds=3)
    crossings, sweeps = found[:24], found[24:]
    assert [job.seed for job in crossings] == [0] * 8 + [1] * 8 + [2] * 8
    assert {job.system.part for job in crossings} == {"crossings"}
    assert "crossings" not in {job.system.part for job in sweeps}
    assert [job.seed for job in sweeps] == sorted(job.seed for job in sweeps)
    for seed in range(3):
        assert {job.system.key for job in found if job.seed == seed} == {system.key for system in systems()}
    assert len({job.name for job in found}) == len(found)


def test_the_systems_are_the_papers() -> None:
    found = {system.key: system for system in systems()}
    crossed = {
        (s.assignment.method, s.assignment.center_sampling, s.start) for s in found.values() if s.part == "crossings"
    }
    kinds = (("max_iou", "none"), ("fcos", "none"), ("fcos", "nearest"), ("atss", "none"))
    assert crossed == {(method, sampling, start) for method, sampling in kinds for start in ("box", "point")}
    swept = [s.assignment.k for s in found.values() if s.part in ("crossings", "k") and s.assignment.method == "atss"]
    assert sorted(set(swept)) == [3, 5, 7, 9, 11, 13, 15, 17, 19]
    nine = [s for s in found.values() if s.part == "anchors"]
    assert [(s.assignment.method, len(anchor_sides(s.anchors, 8))) for s in nine] == [("max_iou", 9), ("atss", 9)]


def test_systems_differ_in_nothing_but_positives_regression_and_anchors() -> None:
    found = jobs(Path("data"), Path("backbone.pt"), seeds=1)
    first = found[0].config
    for job in found:
        check_config(job.config)
        same = replace(
            job.config.model,
            anchors=first.model.anchors,
            assignment=first.model.assignment,
            regression=first.model.regression,
        )
        assert replace(job.config, recipe=first.recipe, model=same) == first


def test_everything_that_has_a_scale_follows_the_anchor() -> None:
    """In the paper an anchor of 8 strides goes with ranges up to 64, 128, … px and with 9 anchors from 4 strides on."""
    found = {system.key: system for system in systems()}
    one = found["atss-box"].anchors
    sides = [anchor_sides(one, 8 << level)[0][0] for level in range(3)]
    assert list(found["ssc-box"].assignment.level_limits) == sides
    assert found["atss-box-a9"].anchors.scale == one.scale / 2
    assert 2 * sides[1] <= SIDE  # objects of two levels at least fit


def test_killed_and_continued_gives_the_result_of_a_run_that_went_through(
    small_config: Make, shapes_set: Path, tmp_path: Path
) -> None:
    """Killed together with its training; then alone, by SIGTERM, where it must not leave its training behind."""
    trainings = tiny_jobs(small_config, shapes_set, keys=("atss-box",), steps=60)
    through, killed = tmp_path / "through", tmp_path / "killed"
    run(trainings, through, processes=1, seconds=120)
    script = (
        "import sys, json; from pathlib import Path; from runtime.records import record_from_dict\n"
        "from train.config import Config; from train.reproduce.run import run; from train.reproduce.systems import *\n"
        "config = record_from_dict(Config, json.loads(Path(sys.argv[2]).read_text()), 'test')\n"
        "system = next(s for s in systems() if s.key == 'atss-box')\n"
        "from runtime.errors import run_main\n"
        "run_main(lambda: run([Job(system, 0, config)], Path(sys.argv[1]), 1, 120))"
    )
    config = job_folder(through, trainings[0]) / "config.json"
    last = job_folder(killed, trainings[0]) / "train" / "last.pt"

    def until_step(step: int) -> subprocess.Popen[bytes]:
        process = subprocess.Popen([sys.executable, "-c", script, str(killed), str(config)], start_new_session=True)
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline and not (last.exists() and read_checkpoint(last).step >= step):
            time.sleep(0.005)
        return process

    process = until_step(1)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert read_result(killed, trainings[0]) is None
    killed_at = read_checkpoint(last).step
    assert killed_at < 60
    process = until_step(killed_at + 1)
    process.terminate()
    assert process.wait() == 128 + signal.SIGTERM
    with alone_in(job_folder(killed, trainings[0])):  # no training holds its folder any more
        assert killed_at < read_checkpoint(last).step < 60
    run(trainings, killed, processes=1, seconds=120)
    assert read_result(killed, trainings[0]) == read_result(through, trainings[0])
    ends = [read_checkpoint(job_folder(out, trainings[0]) / "train" / "last.pt") for out in (through, killed)]
    assert all(torch.equal(ends[0].model[name], ends[1].model[name]) for name in ends[0].model)


def test_the_time_is_kept(
    small_config: Make, shapes_set: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    trainings = [
        replace(job, config=replace(job.config, schedule=replace(job.config.schedule, steps=100_000)))
        for job in tiny_jobs(small_config, shapes_set)
    ]
    started = time.monotonic()
    run(trainings, tmp_path, processes=2, seconds=1)
    assert time.monotonic() - started < 60  # to the end it would be an hour
    assert [read_result(tmp_path, job) for job in trainings] == [None, None]
    assert "2 of 2 trainings are left" in capfd.readouterr().out
    with alone_in(job_folder(tmp_path, trainings[0])):
        pass  # no process holds the folder any more
    run(trainings, tmp_path / "none", processes=2, seconds=0)
    assert not (job_folder(tmp_path / "none", trainings[0]) / "output.txt").exists()


def test_a_training_that_diverges_is_reported(
    small_config: Make, shapes_set: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    good, bad = tiny_jobs(small_config, shapes_set)
    schedule = replace(bad.config.schedule, learning_rate=1000.0, clip_norm=0.0, warmup_steps=0, optimizer="sgd")
    bad = replace(bad, config=replace(bad.config, schedule=schedule))
    run([good, bad], tmp_path, processes=2, seconds=120)
    result = read_result(tmp_path, bad)
    assert result is not None
    assert "became" in result.error
    assert "FAILED" in capfd.readouterr().out
    text = report.write_report([good, bad], tmp_path, tmp_path / "docs").read_text()
    assert "atss-box, seed 0: failed: error: the loss or its gradient became" in text
    assert "| ATSS | box | – | – | – | 0, 1 failed |" in text
    reached = read_result(tmp_path, good)
    assert reached is not None
    assert 0 <= reached.metrics["AP"] <= 1
    ended = [(job_folder(tmp_path, job) / RESULT).stat().st_mtime_ns for job in (good, bad)]
    run([good, bad], tmp_path, processes=2, seconds=120)  # both have ended: there is nothing to do
    assert [(job_folder(tmp_path, job) / RESULT).stat().st_mtime_ns for job in (good, bad)] == ended


def test_a_training_that_is_killed_is_tried_again(
    monkeypatch: pytest.MonkeyPatch, small_config: Make, shapes_set: Path, tmp_path: Path
) -> None:
    """As where memory is short: no result and no failure that stays, and the run goes on with the others."""
    trainings = tiny_jobs(small_config, shapes_set)
    started = []

    def dies(folder: Path) -> subprocess.Popen[bytes]:
        started.append(folder)
        return subprocess.Popen([sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"])

    monkeypatch.setattr(reproduce_run, "start_process", dies)
    for _ in range(2):
        run(trainings, tmp_path, processes=1, seconds=120)
    assert [read_result(tmp_path, job) for job in trainings] == [None, None]
    assert started == [job_folder(tmp_path, job) for job in trainings] * 2


def test_two_runs_in_one_folder_and_other_settings_are_refused(
    small_config: Make, shapes_set: Path, tmp_path: Path
) -> None:
    trainings = tiny_jobs(small_config, shapes_set)
    with alone_in(tmp_path), pytest.raises(UserError, match="another run"):
        run(trainings, tmp_path, processes=1, seconds=0)
    run(trainings, tmp_path, processes=1, seconds=0)
    changed = replace(trainings[0], config=replace(trainings[0].config, model=Model()))
    with pytest.raises(UserError, match="other settings"):
        run([changed], tmp_path, processes=1, seconds=0)


def test_the_table_before_anything_is_trained(tmp_path: Path) -> None:
    text = report.write_report(jobs(Path("data"), Path("backbone.pt"), seeds=2), tmp_path, tmp_path).read_text()
    assert "not trained yet: seed 0, 1" in text
    assert "nan" not in text
    assert (tmp_path / report.CROSSINGS_PLOT).exists()


def test_mean_and_spread_by_hand(tmp_path: Path) -> None:
    trainings = [job for job in jobs(Path("data"), Path("backbone.pt"), seeds=3) if job.system.part == "crossings"]
    for job in trainings:
        if job.system.key == "atss-box":
            put(tmp_path, job, (0.40, 0.42, 0.44)[job.seed])
        elif job.system.key == "iou-box":
            put(tmp_path, job, (0.38, 0.39, None)[job.seed], error="" if job.seed < 2 else "it broke")
        elif job.system.key == "ssc-point":
            put(tmp_path, job, (0.39, 0.41, 0.37)[job.seed])
    text = report.write_report(trainings, tmp_path, tmp_path / "docs").read_text()
    # 40, 42, 44: mean 42, deviations −2, 0, 2, variance 8 / 2
    assert "| ATSS | box | 42.0 ± 2.0 | 62.0 ± 2.0 | 32.0 ± 2.0 | 3 | 40.0 42.0 44.0 | 39.3 |" in text
    # 38, 39: mean 38.5, variance 2 · 0.25 / 1
    assert "| IoU | box | 38.5 ± 0.7 | 58.5 ± 0.7 | 28.5 ± 0.7 | 2, 1 failed | 38.0 39.0 | 37.0 |" in text
    assert "- iou-box, seed 2: failed: it broke" in text
    assert "- iou-point: not trained yet: seed 0, 1, 2" in text
    # Every seed of ATSS (40 …) is above every one of IoU (… 39); the spatial constraint's 41 is above ATSS's 40.
    assert "| ATSS, box | IoU, box | 2.3 | +3.5 | yes, as in the paper |" in text
    assert "| ATSS, box | spatial and scale constraint, point | 1.5 | +3.0 | no |" in text
    numbers = {row["system"]: row for row in json.loads((tmp_path / "docs" / report.NUMBERS).read_text())}
    assert numbers["atss-box"]["ap_mean"] == pytest.approx(42.0)
    assert numbers["atss-box"]["ap_spread"] == pytest.approx(statistics.stdev([40, 42, 44]))
    assert numbers["iou-box"]["failures"] == {"2": "it broke"}
    assert numbers["lite-box"]["ap_mean"] is None


def test_one_seed_has_no_spread() -> None:
    mean, spread = mean_and_spread((41.0,))
    assert (mean, math.isnan(spread)) == (41.0, True)


def test_only_what_the_report_wrote_is_replaced(tmp_path: Path) -> None:
    trainings = jobs(Path("data"), Path("backbone.pt"), seeds=1)
    page = tmp_path / report.PAGE
    page.write_text(f"# Mine\n\nbefore\n\n{report.BEGIN}\nold\n{report.END}\n\nafter\n")
    report.write_report(trainings, tmp_path, tmp_path)
    first = page.read_text()
    assert first.startswith("# Mine\n\nbefore\n\n")
    assert first.endswith("after\n")
    assert "old" not in first
    report.write_report(trainings, tmp_path, tmp_path)
    assert page.read_text() == first
