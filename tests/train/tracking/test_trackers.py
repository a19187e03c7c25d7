"""Trackers: the real libraries write offline, and what they wrote is read back. One that fails ends no training."""

from __future__ import annotations

import json
import os
import shlex
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from runtime.errors import UserError
from train.config import Config
from train.tracking import trackers
from train.tracking.tracker import Facts, Place
from train.tracking.trackers import IDS, TRACKERS, Trackers, read_ids, require_trackers
from train.trainer.loop import train_detector
from train.trainer.run_log import LOG, RunLog, read_log

Make = Callable[..., Config]
ROOT = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """What trackers set in the environment is undone, and the user's own settings don't count."""
    for name in [*os.environ, "WANDB_MODE", "WANDB_ERROR_REPORTING", "MLFLOW_DISABLE_TELEMETRY"]:
        if name.startswith(("WANDB_", "MLFLOW_")):
            monkeypatch.setenv(name, "")  # remembered, so that it is restored
            monkeypatch.delenv(name)
    for name in ("MLFLOW_ALLOW_FILE_STORE", "MLFLOW_HTTP_REQUEST_MAX_RETRIES", "MLFLOW_HTTP_REQUEST_TIMEOUT"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


def tracked(config: Config, *names: str) -> Config:
    return replace(config, run=replace(config.run, log=names))


def train_lines(out: Path) -> dict[int, float]:
    return {line["step"]: line["total"] for line in read_log(out / LOG) if line["kind"] == "train"}


def wandb_records(file: Path) -> Iterator[Any]:
    """The records of an offline run: a log of LevelDB's format, in blocks of 32 KiB, after W&B's own seven bytes."""
    from wandb.proto import wandb_internal_pb2

    data, place, parts = file.read_bytes(), 7, b""
    while place + 7 <= len(data):
        if (left := 32768 - place % 32768) < 7:
            place += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, place)
        parts += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            record = wandb_internal_pb2.Record()
            record.ParseFromString(parts)
            parts = b""
            yield record


def wandb_part(out: Path, number: int) -> tuple[str, dict[int, dict[str, float]], dict[str, str], int]:
    """Of the n-th part of a run: the run's id, its numbers by step, its settings, the exit code."""
    folders = sorted((out / "wandb").glob("offline-run-*"), key=lambda folder: folder.stat().st_ctime_ns)
    (file,) = folders[number].glob("*.wandb")
    until = time.monotonic() + 20  # W&B's process may still be writing
    while not any(record.WhichOneof("record_type") == "exit" for record in wandb_records(file)):
        assert time.monotonic() < until, "no end of the run was written"
        time.sleep(0.05)
    run_id, history, settings, code = "", {}, {}, -1
    for record in wandb_records(file):
        kind = record.WhichOneof("record_type")
        if kind == "run":
            run_id = record.run.run_id or run_id
        if kind in ("run", "config"):
            updates = (record.run.config if kind == "run" else record.config).update
            settings |= {item.key or ".".join(item.nested_key): item.value_json for item in updates}
        if kind == "history":
            values = {item.key or item.nested_key[0]: json.loads(item.value_json) for item in record.history.item}
            history.setdefault(values["step"], {}).update(values)
        if kind == "exit":
            code = record.exit.exit_code
    return run_id, history, settings, code


def test_nothing_is_imported_that_was_not_asked_for() -> None:
    script = (
        "import sys, train.api, train.tracking.trackers as t; t.require_trackers(('tensorboard', 'wandb', 'mlflow'))\n"
        "assert not {'wandb', 'mlflow'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})


def test_wandb_offline_has_the_logs_numbers_and_a_resumed_run_its_id(
    small_config: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("wandb")
    config = tracked(small_config(steps=3), "wandb")
    train_detector(config, tmp_path)
    assert not (tmp_path / "tensorboard").exists()
    said = capsys.readouterr().out
    assert said.count("send it with: wandb sync ") == 1
    assert "warning" not in said
    run_id, history, settings, code = wandb_part(tmp_path, 0)
    assert run_id == read_ids(tmp_path / IDS).wandb != ""
    assert code == 0
    assert {step: values["train/total"] for step, values in history.items()} == train_lines(tmp_path)
    assert history[3].keys() >= {"train/lr", "train/grad_norm"}
    assert settings["schedule.batch"] == "2"
    assert settings["model.backbone.name"] == '"resnet18"'
    assert settings["augment.crop"] == '"64 64"'

    longer = replace(config, schedule=replace(config.schedule, steps=5))
    train_detector(longer, tmp_path, resume=True)
    again, history, settings, code = wandb_part(tmp_path, 1)
    assert again == run_id
    assert sorted(history) == [4, 5]
    assert settings["schedule.steps"] == "5"


@pytest.mark.parametrize("mode", [None, "", "offline", "dryrun"])
def test_the_command_that_sends_an_offline_run_is_one_that_wandb_takes(
    mode: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb")
    if mode is not None:
        monkeypatch.setenv("WANDB_MODE", mode)
    said: list[str] = []
    opened = Trackers(("wandb",), tmp_path / "o'hara & söhne #1", 0, said.append, LOG)
    opened.start(Facts({}, {}, {}))
    opened.close(True)
    program, *arguments = shlex.split(said[0].partition("send it with: ")[2])
    assert program == "wandb"
    command = [sys.executable, "-m", "wandb", *arguments, "--dry-run"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, stdin=subprocess.DEVNULL, timeout=120)
    assert "Would sync 1 run" in done.stdout + done.stderr


def test_wandb_that_is_switched_off_says_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "disabled")
    said: list[str] = []
    opened = Trackers(("wandb",), tmp_path, 0, said.append, LOG)
    opened.start(Facts({}, {}, {}))
    opened.log("train", 1, {"total": 1.0})
    opened.close(True)
    assert said == []


def test_a_new_run_has_no_ids_of_an_older_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run before left no checkpoint, so this one is new; it has another tracker, whose id is kept alone."""
    places: list[Place] = []

    def opened(place: Place) -> Failing:
        places.append(place)
        tracker = Failing("nowhere")
        tracker.run_id = f"id{len(places)}"
        return tracker

    for name in ("wandb", "mlflow"):
        monkeypatch.setitem(trackers.TRACKERS, name, TRACKERS[name]._replace(open=opened))
    Trackers(("wandb", "mlflow"), tmp_path, 0, print, LOG)
    Trackers(("wandb",), tmp_path, 0, print, LOG)
    assert (read_ids(tmp_path / IDS).wandb, read_ids(tmp_path / IDS).mlflow) == ("id3", "")
    Trackers(("wandb", "mlflow"), tmp_path, 5, print, LOG)
    assert [place.run_id for place in places[3:]] == ["id3", ""]
    (tmp_path / IDS).write_text("damaged")
    Trackers(("mlflow",), tmp_path, 0, print, LOG)
    assert len(places) == 6


def test_a_setting_that_goes_back_is_in_mlflow_as_it_is_now(tmp_path: Path) -> None:
    pytest.importorskip("mlflow")
    from mlflow.tracking import MlflowClient

    for step, value in enumerate((3, 5, 3)):
        opened = Trackers(("mlflow",), tmp_path, step, print, LOG)
        opened.start(Facts({"schedule.steps": value}, {}, {}))
        opened.close(True)
    client = MlflowClient(tracking_uri=(tmp_path / "mlflow").as_uri())
    data = client.get_run(read_ids(tmp_path / IDS).mlflow).data
    assert (data.params["schedule.steps"], data.tags["schedule.steps"]) == ("3", "3")


def test_mlflow_keeps_a_run_in_the_folder_and_a_resumed_run_goes_on_in_it(
    small_config: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mlflow")
    from mlflow.tracking import MlflowClient

    config = tracked(small_config(steps=3), "tensorboard", "mlflow")
    train_detector(config, tmp_path / "run")
    assert any((tmp_path / "run" / "tensorboard").iterdir())
    longer = replace(config, schedule=replace(config.schedule, steps=5))
    train_detector(longer, tmp_path / "run", resume=True)
    assert "warning" not in capsys.readouterr().out
    client = MlflowClient(tracking_uri=(tmp_path / "run" / "mlflow").as_uri())
    (experiment,) = [one for one in client.search_experiments() if one.name == "atss"]
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.run_id == read_ids(tmp_path / "run" / IDS).mlflow
    assert (run.info.run_name, run.info.status) == ("run", "FINISHED")
    history = {m.step: m.value for m in client.get_metric_history(run.info.run_id, "train/total")}
    assert history == train_lines(tmp_path / "run")
    assert len(history) == 5
    assert run.data.params["schedule.batch"] == "2"
    assert (run.data.params["schedule.steps"], run.data.tags["schedule.steps"]) == ("3", "5")
    assert Path(run.data.tags["last.pt"]).samefile(tmp_path / "run" / "last.pt")
    assert int(run.data.tags["parameters"]) > 1000

    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "shared").as_uri())
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "blood cells")
    train_detector(config, tmp_path / "other")
    assert not (tmp_path / "other" / "mlflow").exists()
    shared = MlflowClient(tracking_uri=(tmp_path / "shared").as_uri())
    assert shared.get_experiment_by_name("blood cells") is not None


class Failing:
    """A tracker that fails in one of its methods."""

    run_id = ""

    def __init__(self, at: str) -> None:
        self.at, self.calls = at, list[str]()

    @property
    def note(self) -> str:
        if self.at == "note":
            self.called("note")
        return ""

    def called(self, name: str) -> None:
        self.calls.append(name)
        if name == self.at:
            raise RuntimeError("the service\nis gone")

    def start(self, facts: Facts) -> None:
        self.called("start")

    def log(self, kind: str, step: int, values: Mapping[str, float]) -> None:
        self.called("log")

    def close(self, finished: bool) -> None:
        self.called(f"close {finished}")


@pytest.mark.parametrize("at", ["open", "start", "note", "log", "close True"])
def test_a_tracker_that_fails_is_one_warning_and_the_training_ends_well(
    at: str, small_config: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    failing = Failing(at)

    def opened(place: Place) -> Failing:
        failing.called("open")
        return failing

    monkeypatch.setitem(trackers.TRACKERS, "wandb", TRACKERS["wandb"]._replace(open=opened, library="json"))
    result = train_detector(tracked(small_config(steps=3), "wandb", "tensorboard"), tmp_path)
    assert result.steps == 3
    assert sorted(train_lines(tmp_path)) == [1, 2, 3]
    said = capsys.readouterr().out
    assert said.count("warning") == 1
    assert "warning: cannot write the run in W&B: the service is gone; log.jsonl has the same numbers" in said
    expected = ["open", "start", *["note"] * (at == "note"), "log", "log", "log", "close True"]
    stopped = expected[: expected.index(at) + 1]
    assert failing.calls == (stopped if at in ("open", "close True") else [*stopped, "close False"])
    assert any((tmp_path / "tensorboard").iterdir()), "the other tracker goes on"


def test_a_run_that_is_broken_off_is_closed_as_unfinished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    open_tracker = Failing("nowhere")
    monkeypatch.setitem(trackers.TRACKERS, "wandb", TRACKERS["wandb"]._replace(open=lambda place: open_tracker))
    with pytest.raises(KeyboardInterrupt), RunLog(tmp_path, 0, trackers=("wandb",)):
        raise KeyboardInterrupt
    assert open_tracker.calls == ["close False"]


def test_a_server_that_is_not_there_is_one_warning(
    small_config: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    train_detector(tracked(small_config(steps=1), "mlflow"), tmp_path)
    said = capsys.readouterr().out
    assert said.count("warning: cannot write the run in MLflow: API request to http://127.0.0.1:9") == 1
    assert said.count("warning") == 1


def test_no_message_has_the_password_of_a_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://bob:s3cr@t@127.0.0.1:9/api")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    said: list[str] = []
    Trackers(("mlflow",), tmp_path, 0, said.append, LOG)
    assert "http://127.0.0.1:9/api" in said[0]
    tracker = Failing("note")
    monkeypatch.setattr(Failing, "note", "in https://bob:s3cret@host:5000/x; see https://docs/@1")
    monkeypatch.setitem(trackers.TRACKERS, "wandb", TRACKERS["wandb"]._replace(open=lambda place: tracker))
    Trackers(("wandb",), tmp_path, 0, said.append, LOG).start(Facts({}, {}, {}))
    assert said[1:] == ["in https://host:5000/x; see https://docs/@1"]
    assert not any(part in line for line in said for part in ("bob", "s3c"))


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_library_that_is_missing_is_one_line_before_anything_is_written(
    name: str, small_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match=f"--run.log {name} needs {name}, .*install atss-toolkit with the extra {name}"):
        train_detector(tracked(small_config(steps=1), name), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_folder_named_like_a_library_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "planted_tracker").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(trackers.TRACKERS, "wandb", TRACKERS["wandb"]._replace(library="planted_tracker"))
    with pytest.raises(UserError, match="needs planted_tracker"):
        require_trackers(("wandb",))


@pytest.mark.parametrize("text", ["", "[1]", '{"wandb": "a b"}', '{"wandb": 7}', '{"other": "x"}', "{" * 9])
def test_damaged_ids_are_a_warning(text: str, tmp_path: Path) -> None:
    (tmp_path / IDS).write_text(text)
    with pytest.raises(UserError, match=IDS):
        read_ids(tmp_path / IDS)
    said: list[str] = []
    Trackers(("wandb",), tmp_path, 3, said.append, LOG)
    assert len(said) == 1
    assert said[0].startswith("warning: cannot write the run in W&B")


def test_old_checkpoints_log_to_tensorboard() -> None:
    from train.config import Run

    assert Run().log == ("tensorboard",)
