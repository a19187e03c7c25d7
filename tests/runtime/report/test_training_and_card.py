"""The training run of a report, read without torch, and the model card's metadata."""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import zipfile
from pathlib import Path

import pytest

from runtime.errors import UserError
from runtime.manifest import Preprocess, Thresholds
from runtime.report.card import model_card
from runtime.report.content import DataContent, Interval, ModelContent, ReportContent
from runtime.report.training import SettingsError, find_run, read_run, read_settings

LINES = [
    {"kind": "train", "step": 1, "total": 2.0, "classification": 1.0, "box": 0.5, "images_per_second": 10.0},
    {"kind": "train", "step": 2, "total": 1.5, "classification": 0.7, "box": 0.4, "images_per_second": 30.0},
    {"kind": "val", "step": 1, "AP": -1.0, "AP50": -1.0},
    {"kind": "val", "step": 2, "AP": 0.25, "AP50": 0.5},
]


def write_run(folder: Path, config: dict | None = None) -> Path:
    """A run's log, and a checkpoint in torch's layout with no tensors in it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in LINES))
    if config is not None:
        content = {"format": "atss-toolkit checkpoint", "version": 1, "config": json.dumps(config)}
        with zipfile.ZipFile(folder / "last.pt", "w") as archive:
            archive.writestr("archive/data.pkl", pickle.dumps(content, protocol=2))
    return folder


def test_a_run(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path / "run", {"recipe": "x", "schedule": {"steps": 2}}))
    assert [(one.name, list(one.steps), list(one.values)) for one in run.losses] == [
        ("total", [1, 2], [2.0, 1.5]),
        ("classification", [1, 2], [1.0, 0.7]),
        ("box", [1, 2], [0.5, 0.4]),
    ]
    assert [(one.name, list(one.steps), list(one.values)) for one in run.metrics] == [
        ("AP", [2], [0.25]),
        ("AP50", [2], [0.5]),
    ]
    assert run.settings == {"recipe": "x", "schedule": {"steps": 2}}
    assert run.facts["best AP in training"] == "25.0 at step 2"
    with pytest.raises(UserError, match=r"no log\.jsonl there; give the --out folder"):
        read_run(tmp_path)
    assert read_run(write_run(tmp_path / "bare")).facts["settings"] == "unknown: the folder has no checkpoint"


def test_the_best_ap_is_of_the_whole_set_and_a_stop_of_the_end(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    more = [
        {"kind": "val", "step": 3, "AP": 0.75, "limit": 200},
        {"kind": "stop", "step": 3, "best_ap": 0.25, "evaluations_since": 1},
    ]
    log = run / "log.jsonl"

    def facts(*lines: dict) -> dict[str, str]:
        log.write_text("".join(json.dumps(line) + "\n" for line in lines))
        return dict(read_run(run).facts)

    assert facts(*LINES, *more)["best AP in training"] == "25.0 at step 2"
    assert facts(*LINES[:3], *more)["best AP in training"] == "75.0 at step 3, on the first 200 images"
    assert facts(*LINES, *more)["early stopping"] == "at step 3, after 1 evaluation without a better AP"
    resumed = {"kind": "train", "step": 4, "total": 1.0}
    assert "early stopping" not in facts(*LINES, *more, resumed)


def test_a_run_is_found_only_where_it_made_the_model(tmp_path: Path) -> None:
    run = write_run(tmp_path / "train", {})
    made = hashlib.sha256((run / "last.pt").read_bytes()).hexdigest()
    assert find_run(tmp_path / "model.onnx", made) == run
    assert find_run(run / "model.onnx", made) == run
    assert find_run(tmp_path / "model.onnx", "0" * 64) is None
    assert "made from last.pt" in read_run(run, made).facts["model"]
    assert "none of this run's checkpoints" in read_run(run, "0" * 64).facts["model"]


def test_the_settings_of_a_real_checkpoint_are_its_own(tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="writes it")
    import dataclasses

    from train.checkpoint import read_checkpoint
    from train.config.recipes import atss_tiny

    from ...support.systems import narrowed, saved

    path = tmp_path / "best.pt"
    saved(narrowed(atss_tiny().model), Thresholds(), Preprocess(short_side=64, long_side=96), path)
    assert read_settings(path) == json.loads(json.dumps(dataclasses.asdict(read_checkpoint(path).config)))


class Evil:
    """Unpickling it would run code."""

    def __reduce__(self) -> tuple:
        return (print, ("ran",))


def test_nothing_is_unpickled_and_damage_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def packed(content: object, compression: int = zipfile.ZIP_STORED) -> bytes:
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w", compression) as archive:
            archive.writestr("archive/data.pkl", pickle.dumps(content, protocol=2))
        return file.getvalue()

    path = tmp_path / "c.pt"
    path.write_bytes(packed({"a": Evil(), "config": "{}"}))
    assert read_settings(path) == {}
    assert capsys.readouterr().out == ""
    whole = packed({"config": json.dumps({"a": 1})})
    for data, expected in (
        (b"", "cannot be read as a checkpoint"),
        (whole[: len(whole) // 2], "cannot be read as a checkpoint"),
        (packed({"config": "{}"}, zipfile.ZIP_DEFLATED), "compressed or too large"),
        (packed({"other": 1}), "has no configuration"),
        (packed({"config": "[1]"}), "no JSON object"),
        (packed({"config": "{"}), "is not JSON"),
    ):
        path.write_bytes(data)
        with pytest.raises(SettingsError, match=expected) as caught:
            read_settings(path)
        assert "\n" not in str(caught.value)
    write_run(tmp_path / "run")
    (tmp_path / "run" / "best.pt").write_bytes(b"no checkpoint")
    assert read_run(tmp_path / "run").facts["settings"].startswith("unknown: ")


def content_named(name: str) -> ReportContent:
    metrics = {key: Interval(0.5, 0.4, 0.6) for key in ("AP", "AP50", "AP75", "APs")}
    metrics["APs"] = Interval(-1)
    model = ModelContent(name, f"{name}.onnx", {"precision": "int8"}, metrics, {name: Interval(0.1)}, 3)
    data = DataContent(f"{name}/val.json", 3, 4, (name,))
    return ReportContent("t", "2026", "atss-toolkit 0", "", 0.3, 10, data, (model,))


@pytest.mark.parametrize("name", ["model", 'a"b: {c} # d', "\u2028x\x85\x1b[0m", "😀 - é", "<script>|`x`", "-", "yes"])
def test_the_cards_metadata_is_what_hugging_face_reads(name: str) -> None:
    hub = pytest.importorskip("huggingface_hub", reason="reads model cards; comes with timm")
    card = hub.ModelCard(model_card(content_named(name)))
    assert card.data.pipeline_tag == "object-detection"
    assert card.data.library_name == "atss-toolkit"
    assert card.data.tags == ["object-detection", "atss", "coco", "int8"]
    assert card.data.license is None
    assert card.data.model_name == name
    assert [(one.metric_type, one.metric_value) for one in card.data.eval_results] == [("map", 0.5)] * 3
    assert {one.task_type for one in card.data.eval_results} == {"object-detection"}
    assert {one.dataset_name for one in card.data.eval_results} == {"val.json"}
    assert {one.dataset_type for one in card.data.eval_results} == {"unknown"}  # no data set of the Hub is claimed
    again = hub.repocard_data.eval_results_to_model_index(name, card.data.eval_results)
    assert hub.repocard_data.model_index_to_eval_results(again) == (name, card.data.eval_results)


def test_a_card_states_what_is_unknown_and_escapes_names() -> None:
    text = model_card(content_named("<b>|x"))
    assert "Unknown: no training run was found" in text
    assert text.count("Not stated: ") == 2
    assert "| APs | nothing to measure |" in text
    assert "| AP | 50.0 (40.0 to 60.0) |" in text
    assert "<b>" not in text.split("---\n", 2)[2]
