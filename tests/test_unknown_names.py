"""A name that a setting doesn't have is refused wherever its names are acted on; none falls through to another."""

from __future__ import annotations

import ast
from collections.abc import Callable
from dataclasses import is_dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest

pytest.importorskip("torch")

import torch

from runtime import manifest
from runtime.backends.engine_file import library_name
from runtime.backends.trt.engine import import_tensorrt
from runtime.doctor.trials import start_backend
from runtime.errors import UserError
from runtime.loadgen.run import open_system
from runtime.loadgen.settings import Estimate, Target, settings_for
from runtime.names import unknown_name
from train import config
from train.assign import build_assigner
from train.build import build_criterion, build_detector, build_postprocess
from train.config import Assignment, Head, Loss, Model, Regression, Schedule, Scoring
from train.config.recipes import atss_tiny
from train.geometry.anchors import anchor_sides, pyramid_levels
from train.geometry.box_coder import decode, encode
from train.loss.criterion import Targets
from train.model.backbones import build_backbone
from train.model.fpn import FeaturePyramid
from train.model.head import Head as HeadModule
from train.model.postprocess import select_candidates
from train.trainer.compilation import compiles_loss
from train.trainer.device import pick_device, pick_precision
from train.trainer.optim import build_optimizer, learning_rate_factor

from .train.loss.test_criterion import CANVAS, SCENE, random_outputs, targets_of

ROOT = Path(__file__).parent.parent
X: Any = "no_such"
BOX = torch.tensor([[8.0, 8.0, 40.0, 40.0]])
STRIDES = torch.tensor([8.0])
CODES = torch.zeros(1, 4)


def assigned_by(rule: Assignment) -> Any:
    targets = targets_of(SCENE)
    return build_assigner(rule)(targets.boxes, targets.mask, pyramid_levels(CANVAS, 5, config.Anchors()))


def losses_with(**changes: Any) -> Any:
    return build_criterion(replace(Model(), **changes))(random_outputs(3, seed=0), targets_of(SCENE), CANVAS)


def candidates_with(scoring: Scoring) -> Any:
    sizes, model = torch.tensor([list(CANVAS)] * 3), replace(Model(), scoring=scoring)
    return select_candidates(random_outputs(3, seed=0), sizes, build_postprocess(model, manifest.Thresholds()))


def detector_with(**changes: Any) -> Any:
    tiny = atss_tiny()
    return build_detector(tiny.model, 3, replace(tiny.preprocess, **changes))


def small_backbone(**changes: Any) -> Any:
    return build_backbone(replace(config.Backbone("resnet18", weights="none", stem_channels=8), **changes))


def run_with(**changes: Any) -> config.Config:
    return replace(atss_tiny(), run=replace(config.Run(device="cpu"), **changes))


PLANTED: dict[str, Callable[[], Any]] = {
    "assignment.method": lambda: assigned_by(Assignment(method=X)),
    "assignment.center_sampling": lambda: assigned_by(Assignment(method="fcos", center_sampling=X)),
    "assignment.k_counts": lambda: assigned_by(Assignment(k_counts=X)),
    "regression.start": lambda: decode(BOX, STRIDES, CODES, Regression(start=X)),
    "regression.start, encoded": lambda: encode(BOX, STRIDES, BOX, Regression(start=X)),
    "regression.distance": lambda: decode(BOX, STRIDES, CODES, Regression(start="point", distance=X)),
    "regression.distance, encoded": lambda: encode(BOX, STRIDES, BOX, Regression(start="point", distance=X)),
    "regression.distance_unit": lambda: decode(BOX, STRIDES, CODES, Regression(start="point", distance_unit=X)),
    "loss.box": lambda: losses_with(loss=Loss(box=X)),
    "head.centerness": lambda: losses_with(head=Head(centerness=X)),
    "head.centerness, built": lambda: HeadModule(16, 3, 5, 1, 4, 0.01, centerness=X),
    "pyramid.extra_from": lambda: FeaturePyramid([8, 8, 8], 16, 5, extra_from=X),
    "anchors.outermost": lambda: anchor_sides(config.Anchors(outermost=X), 8),
    "scoring.combine": lambda: candidates_with(Scoring(combine=X)),
    "scoring.threshold_on": lambda: candidates_with(Scoring(threshold_on=X)),
    "scoring.rank_by": lambda: candidates_with(Scoring(rank_by=X)),
    "preprocess.channel_order": lambda: detector_with(channel_order=X),
    "backbone.name": lambda: small_backbone(name=X),
    "backbone.batch_norm": lambda: small_backbone(batch_norm=X),
    "backbone.bottleneck_stride": lambda: small_backbone(name="resnet50", stem_channels=64, bottleneck_stride=X),
    "schedule.optimizer": lambda: build_optimizer(detector_with(), Schedule(optimizer=X)),
    "schedule.decay": lambda: learning_rate_factor(1000, Schedule(decay=X)),
    "run.device": lambda: pick_device(X),
    "run.precision": lambda: pick_precision(run_with(precision=X)),
    "run.compile_loss": lambda: compiles_loss(run_with(compile_loss=X), torch.device("cpu")),
    "backend": lambda: start_backend(X),
    "flavor": lambda: import_tensorrt(X),
    "flavor, its name": lambda: library_name(X),
    "scenario": lambda: settings_for(Target(**TARGET), Estimate({1: 0.1}, 1.0), None),
    "scenario, run": lambda: open_system(None, None, None, Target(**TARGET), None).__enter__(),  # type: ignore[arg-type]
}
TARGET: dict[str, Any] = {"scenario": X, "is_accuracy": False, "seconds": 1.0, "batch": 1}


@pytest.mark.parametrize("planted", PLANTED)
def test_an_unknown_name_is_refused(planted: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runtime.loadgen.settings.LEAST_QUERIES", {X: 1})
    monkeypatch.setattr("runtime.loadgen.settings.official_seeds", lambda library: {})
    with pytest.raises(UserError, match=rf"^{planted.split(',')[0]} is 'no_such', expected '\w+' or '") as caught:
        PLANTED[planted]()
    assert "\n" not in str(caught.value)


def test_the_message_lists_the_names() -> None:
    with pytest.raises(UserError, match=r"^schedule.decay is 'linear', expected 'step' or 'cosine'$"):
        learning_rate_factor(1000, Schedule(decay="linear"))  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"^x is 3, expected 1 or 2$"):
        unknown_name(3, "x", Literal[1, 2])  # type: ignore[arg-type]


def test_every_name_of_every_setting_is_acted_on() -> None:
    """The other side: no `match` refuses a name that there is. Empty images come first."""
    for method in get_args(config.AssignmentMethod):
        assert assigned_by(Assignment(method=method)).matched.shape[0] == 3
    for sampling in get_args(config.CenterSampling):
        assert assigned_by(Assignment(method="fcos", center_sampling=sampling)).matched.shape[0] == 3
    empty = Targets(torch.zeros(1, 0, 4), torch.zeros(1, 0, dtype=torch.int64), torch.zeros(1, 0, dtype=torch.bool))
    for box in get_args(config.BoxLoss):
        model = replace(Model(), loss=Loss(box=box))
        assert build_criterion(model)(random_outputs(1, seed=0), empty, CANVAS).box.item() == 0
        assert losses_with(loss=Loss(box=box)).box.isfinite()
    for combine in get_args(config.Combine):
        for score in get_args(config.Score):
            candidates_with(Scoring(combine=combine, threshold_on=score, rank_by=score))
    for decay in get_args(config.Decay):
        assert 0 <= learning_rate_factor(1000, Schedule(decay=decay)) <= 1


def matches(source: str) -> list[ast.Match]:
    """Those over names: where a case is a text."""

    def is_over_names(match: ast.Match) -> bool:
        parts = [part for case in match.cases for part in ast.walk(case.pattern)]
        return any(isinstance(part, ast.Constant) and isinstance(part.value, str) for part in parts)

    return [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Match) and is_over_names(node)]


def ends_in_unknown_name(match: ast.Match) -> bool:
    last = match.cases[-1]
    is_rest = isinstance(last.pattern, ast.MatchAs) and last.pattern.pattern is None and last.guard is None
    call = last.body[0].value if isinstance(last.body[0], ast.Expr) else None
    return is_rest and isinstance(call, ast.Call) and getattr(call.func, "id", "") == "unknown_name"


@pytest.mark.parametrize(
    ("source", "ends"),
    [
        ("match x:\n case 'a':\n  y = 1", False),
        ("match x:\n case 'a':\n  y = 1\n case _:\n  y = 2", False),
        ("match x:\n case 'a' | 'b':\n  y = 1\n case _:\n  unknown_name(x, 'x', X)", True),
    ],
)
def test_a_match_that_falls_through_is_found(source: str, ends: bool) -> None:
    assert [ends_in_unknown_name(match) for match in matches(source)] == [ends]
    assert matches("match x:\n case True:\n  y = 1") == []


def test_every_match_over_names_ends_in_a_refusal() -> None:
    sources = [path for package in ("train", "export", "runtime") for path in (ROOT / package).rglob("*.py")]
    found = {path: matches(path.read_text(encoding="utf-8")) for path in sources}
    assert sum(map(len, found.values())) >= 25
    assert [path for path, all_ in found.items() for match in all_ if not ends_in_unknown_name(match)] == []


def test_a_configuration_has_no_name_without_a_literal() -> None:
    """`weights` and `init` are files, the data's texts paths; any other text of the configuration is one of a set."""
    free = {"weights", "init", "train", "val", "train_json", "train_images", "val_json", "val_images", "recipe"}

    def texts(record: type) -> set[str]:
        hints = get_type_hints(record)
        nested = [texts(hint) for hint in hints.values() if is_dataclass(hint) and isinstance(hint, type)]
        return {name for name, hint in hints.items() if hint is str}.union(*nested)

    assert texts(config.Config) == free
    assert get_origin(config.BackboneName) is Literal
