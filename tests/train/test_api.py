"""`train.api.train`: from a recipe's name, a configuration or a checkpoint, with settings by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from runtime.errors import UserError
from train.api import TrainingResult, starting_config, train
from train.checkpoint import read_checkpoint
from train.config import Config
from train.config.overrides import override, setting_names
from train.config.recipes import atss_lite0, atss_r50_fpn_1x, atss_tiny
from train.trainer.loop import BEST, LAST

Make = Callable[..., Config]


@pytest.fixture(scope="module")
def result(small_config: Make, shapes_set: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainingResult:
    """A run of four steps that is evaluated at its end."""
    validation = {"data.val_json": shapes_set / "val.json", "data.val_images": str(shapes_set / "val")}
    return train(small_config(), out=tmp_path_factory.mktemp("run"), overrides={"schedule.steps": 4, **validation})


def test_the_result_says_what_is_in_the_folder(result: TrainingResult) -> None:
    last = read_checkpoint(result.last)
    assert (result.last.name, result.best) == (LAST, result.last.parent / BEST)
    assert result.steps == last.step == 4
    assert result.ap == last.ap == result.best_ap == last.best_ap
    assert result.ap is not None
    assert 0 <= result.ap <= 1


def test_a_finished_run_is_resumed_without_a_step(result: TrainingResult, capsys: pytest.CaptureFixture[str]) -> None:
    before = result.last.read_bytes()
    again = train(read_checkpoint(result.last).config, out=result.last.parent, resume=True)
    assert again == result._replace(ap=None), "nothing was evaluated by this call"
    assert result.last.read_bytes() == before
    assert f"done: {result.last}" in capsys.readouterr().out


def test_without_a_validation_set_there_is_no_best(small_config: Make, tmp_path: Path) -> None:
    found = train(small_config(), out=str(tmp_path / "run"), overrides={"schedule.steps": 1})
    assert found == TrainingResult(tmp_path / "run" / LAST, None, 1, None, None)


def test_a_checkpoint_is_where_fine_tuning_starts(result: TrainingResult) -> None:
    config, trained = starting_config(result.last), read_checkpoint(result.last).config
    assert config == starting_config(str(result.last))
    assert config.run.init == str(result.last)
    assert config.data.train_json == ""
    assert config.model.backbone == replace(trained.model.backbone, weights="none")
    assert config.schedule == trained.schedule


def test_a_recipe_by_name_and_a_configuration_as_it_is() -> None:
    assert starting_config("atss_tiny") == atss_tiny()
    changed = replace(atss_tiny(), recipe="mine")
    assert starting_config(changed) is changed
    with pytest.raises(UserError, match=r"^no recipe 'atss_tinny', did you mean atss_tiny\? \(there are atss_r50_"):
        starting_config("atss_tinny")


def test_settings_are_changed_by_name() -> None:
    settings = {"schedule.milestones": (3, 4), "augment.crop": [64, 96], "data.train_json": Path("a.json")}
    found = override(atss_tiny(), {**settings, "schedule.learning_rate": 1, "run.compile": True})
    tiny = atss_tiny()
    assert found == replace(
        tiny,
        augment=replace(tiny.augment, crop=(64, 96)),
        data=replace(tiny.data, train_json="a.json"),
        schedule=replace(tiny.schedule, milestones=(3, 4), learning_rate=1.0),
        run=replace(tiny.run, compile=True),
    )
    assert override(tiny, {}) == tiny


def test_every_setting_can_be_given_as_it_is() -> None:
    config = atss_r50_fpn_1x()
    names = setting_names(config)
    assert {"recipe", "model.backbone.name", "thresholds.score", "run.seed"} <= set(names)

    def value(name: str) -> object:
        found: object = config
        for part in name.split("."):
            found = getattr(found, part)
        return found

    assert override(config, {name: value(name) for name in names}) == config


def test_an_exchanged_backbone_brings_its_normalisation() -> None:
    found = override(atss_lite0(), {"model.backbone.name": "resnet18"})
    assert found.preprocess.mean == atss_tiny().preprocess.mean
    kept = override(atss_lite0(), {"model.backbone.name": "resnet18", "preprocess.mean": (1.0, 2.0, 3.0)})
    assert kept.preprocess.mean == (1.0, 2.0, 3.0)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("schedule.step", 3, r"^no setting 'schedule\.step', did you mean 'schedule\.steps'\?$"),
        ("schedule", 3, r"^no setting 'schedule'"),
        ("schedule.steps", "3", r"field 'schedule\.steps' is a text \('3'\), expected int$"),
        ("schedule.decay", "linear", r"field 'schedule\.decay' is a text \('linear'\), expected Literal"),
        ("augment.crop", (1, 2, 3), r"field 'augment\.crop' is a list .*, expected tuple"),
    ],
)
def test_a_setting_that_there_is_not_and_a_value_of_another_type_are_refused(
    name: str, value: object, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        override(atss_tiny(), {name: value})


def test_settings_that_cannot_work_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"field 'schedule\.batch' is a number \(0\), expected at least 1"):
        train("atss_tiny", out=tmp_path / "run", overrides={"schedule.batch": 0})
    assert not (tmp_path / "run").exists()
