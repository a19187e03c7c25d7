"""`train.validate`: a checkpoint sees images in tiles as a deployed model does."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from runtime.coco import load_coco
from runtime.coco.evaluation import score_detector
from runtime.coco.run import RunSettings
from runtime.detector import Detector
from runtime.errors import UserError
from runtime.tiling import Tiles
from runtime.tta import TtaSettings, with_tta
from train import validate
from train.checkpoint import load_detector
from train.config import Config
from train.trainer.evaluation import TorchBackend
from train.trainer.loop import LAST, train_detector

Make = Callable[..., Config]


@pytest.fixture(scope="module")
def checkpoint(small_config: Make, tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = small_config(steps=1)
    head = replace(config.model.head, prior_probability=0.1)  # so early it finds something already
    config = replace(config, model=replace(config.model, head=head))
    out = tmp_path_factory.mktemp("validated")
    train_detector(config, out)
    return out / LAST


@pytest.mark.parametrize(
    ("options", "settings"),
    [
        (["--tiles", "64"], TtaSettings()),  # no image is larger
        (["--tiles", "40", "--batch", "3"], TtaSettings(tiles=Tiles(40, batch=3))),
        (["--tiles", "48", "--overlap", "0.5", "--no-whole"], TtaSettings(tiles=Tiles(48, 0.5, whole=False))),
        (["--tiles", "40", "--scales", "48", "64", "--flip"], TtaSettings((48, 64), flip=True, tiles=Tiles(40))),
    ],
)
def test_a_checkpoint_is_validated_on_tiles(
    options: list[str],
    settings: TtaSettings,
    checkpoint: Path,
    shapes_set: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    found: list[Any] = []
    evaluate = validate.evaluate_distributed

    def kept(*given: Any, **more: Any) -> Any:
        evaluation = evaluate(*given, **more)
        found.append(evaluation)
        return evaluation

    monkeypatch.setattr(validate, "evaluate_distributed", kept)
    command = ["validate", str(checkpoint), "--annotations", str(shapes_set / "val.json"), *options]
    monkeypatch.setattr(sys, "argv", [*command, "--images", str(shapes_set / "val")])
    assert validate.main() == 0
    loaded = load_detector(checkpoint)
    detector = Detector(TorchBackend(loaded.detector, loaded.config, loaded.classes))
    dataset = load_coco(shapes_set / "val.json", shapes_set / "val")
    batch = RunSettings(batch=3 if "--batch" in options else 8)
    expected = score_detector(with_tta(detector, settings), dataset, settings=batch)
    assert list(found[0].results) == list(expected.results)
    assert found[0].metrics.values == expected.metrics.values
    assert len(expected.results) > 100
    if settings.tiles is not None:
        plain = score_detector(detector, dataset, settings=batch)
        assert list(plain.results) != list(expected.results)
    capsys.readouterr()


def test_options_of_tiles_without_tiles(
    checkpoint: Path, shapes_set: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["validate", str(checkpoint), "--annotations", str(shapes_set / "val.json"), "--no-whole"]
    monkeypatch.setattr(sys, "argv", [*command, "--images", str(shapes_set / "val")])
    with pytest.raises(UserError, match="need --tiles PX"):
        validate.main()
    capsys.readouterr()
