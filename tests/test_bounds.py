"""Every number that enters has bounds: in files, in training's settings, and in the options of all commands."""

from __future__ import annotations

import argparse
import ast
import dataclasses
import importlib
import math
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

import pytest

from export.calibration import Calibration
from export.onnx_model.precision import QuantizationNote
from runtime.backends.engine_file import EngineManifest
from runtime.backends.fastest import Verdict
from runtime.backends.options import BackendOptions
from runtime.bounds import Bounds, Constraint
from runtime.cli import COMMANDS
from runtime.coco.shards import PartHead
from runtime.decoders import Note
from runtime.errors import UserError
from runtime.manifest import Manifest
from runtime.records import RecordError, plain, record_from_dict
from train.__main__ import parse
from train.checkpoint import Facts
from train.config import Config
from train.config.check import check_config
from train.config.overrides import override, setting_names
from train.config.recipes import RECIPES, atss_tiny
from train.reproduce.run import StoredResult
from train.tracking.trackers import Ids
from train.trainer.elastic import Claim

ROOT = Path(__file__).parent.parent
RECORDS = (
    *(Config, Manifest, EngineManifest, Verdict, PartHead, Note),
    *(BackendOptions, Calibration, QuantizationNote, Facts, StoredResult, Claim, Ids),
)
HOSTILE = [math.nan, math.inf, -math.inf, 1e30, -1e30, 10**30, -(10**30), 10**400, -(10**400), 10**5000]
DOUBTFUL = [-1, 0, 1, 2, 0.5, 1e-30, 99_999_999_999]


def outcome(call: Callable[[], Any], refusal: type[Exception]) -> tuple[Any, Exception | None]:
    """What a call returns, and the refusal that it raises."""
    try:
        return call(), None
    except refusal as error:
        return None, error


def unbounded(hint: Any, name: str, bounded: bool = False) -> Iterator[str]:
    """Names of the numbers in a type that no `Bounds` belong to."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        yield from unbounded(arguments[0], name, any(isinstance(one, Bounds) for one in arguments[1:]))
    elif dataclasses.is_dataclass(hint):
        for field, inner in get_type_hints(hint, include_extras=True).items():
            yield from unbounded(inner, f"{name}.{field}")
    elif origin in (tuple, dict, Union, UnionType):
        for inner in arguments:
            yield from unbounded(inner, name)
    elif hint in (int, float) and not bounded:
        yield name


@dataclasses.dataclass(frozen=True)
class Careless:
    """A record whose author forgot all bounds."""

    a: int
    b: tuple[float, ...]
    c: dict[str, int | None]
    d: Annotated[int, "no bounds"]
    e: Annotated[tuple[int, ...], Bounds(0, 1)]
    f: bool = True


def test_a_number_without_bounds_is_found() -> None:
    assert [*unbounded(Careless, "x")] == ["x.a", "x.b", "x.c", "x.d", "x.e"]


@pytest.mark.parametrize("record", RECORDS)
def test_every_number_of_a_record_has_bounds(record: type) -> None:
    assert [*unbounded(record, record.__name__)] == []


def read_records(source: str) -> set[str]:
    """The names of the classes that a module reads by `record_from_dict`."""
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    named = [call for call in calls if isinstance(call.func, ast.Name) and call.func.id == "record_from_dict"]
    return {ast.unparse(call.args[0]) for call in named}


def test_every_record_that_is_read_is_tested_here() -> None:
    assert read_records('record_from_dict(Other, {}, "x")') == {"Other"}
    sources = [path for package in ("runtime", "train", "export") for path in (ROOT / package).rglob("*.py")]
    found = set().union(*(read_records(path.read_text(encoding="utf-8")) for path in sources))
    assert found - {"type(record)"} == {record.__name__ for record in RECORDS}


def with_value(value: Any, place: list[str | int], new: Any) -> Any:
    """Nested objects and lists with one value replaced."""
    if not place:
        return new
    first, *rest = place
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[first] = with_value(value[first], rest, new)  # type: ignore[index]
    return copy


def places(value: Any) -> Iterator[list[str | int]]:
    """Where the numbers are."""
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from ([key, *place] for place in places(inner))
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield []


SETTINGS = plain(
    dataclasses.replace(
        override(atss_tiny(), {"augment.short_sides": [64, 96], "model.backbone.deformable_stages": [3, 4]})
    )
)
PLACES = [*places(SETTINGS)]


@pytest.mark.parametrize("place", PLACES, ids=[".".join(map(str, place)) for place in PLACES])
def test_a_setting_is_accepted_with_sense_or_refused_in_one_line(place: list[str | int]) -> None:
    name = ".".join(str(part) for part in place if isinstance(part, str))
    for value in (*HOSTILE, *DOUBTFUL):
        changed = with_value(SETTINGS, place, value)
        _, error = outcome(lambda changed=changed: record_from_dict(Config, changed, "settings"), RecordError)
        if error is None:
            assert value in DOUBTFUL, f"{name} takes {value}"
            continue
        assert isinstance(error, RecordError)
        assert error.name.split("[")[0] == name or value in DOUBTFUL  # a conflict may name the other field
        assert "field '" in str(error)
        assert "expected" in str(error)
        assert len(str(error)) < 400
        assert "\n" not in str(error)


def test_all_settings_are_among_them() -> None:
    numeric = {".".join(str(part) for part in place if isinstance(part, str)) for place in PLACES}
    config = atss_tiny()
    for name in setting_names(config):
        value: Any = config
        for part in name.split("."):
            value = getattr(value, part)
        first = value[0] if isinstance(value, tuple) and value else value
        if isinstance(first, int | float) and not isinstance(first, bool):
            assert name in numeric


SENSELESS = [
    "--thresholds.nms-iou 5",
    "--thresholds.score nan",
    "--preprocess.std -1 2 3",
    "--preprocess.std 1 0 1",
    "--preprocess.mean inf 0 0",
    "--preprocess.pad-value 999 1 1",
    "--preprocess.long-side 10",
    "--schedule.optimizer adamw --schedule.betas 1 2",
    "--schedule.epochs 1e308",
    "--schedule.epochs nan",
    "--schedule.steps 0",
    f"--schedule.steps {10**30}",
    "--schedule.batch 1000000000000",
    "--schedule.milestones 5 3",
    "--schedule.milestones 3 3",
    "--schedule.momentum 2",
    "--schedule.ema 1.5",
    "--schedule.warmup-steps -1",
    "--schedule.learning-rate inf",
    "--model.head.prior-probability 0",
    "--model.head.prior-probability 1",
    "--model.anchors.scale nan",
    "--model.anchors.ratios 0",
    "--model.anchors.center nan",
    "--model.assignment.positive-iou 2",
    "--model.assignment.level-limits 5 3",
    "--model.regression.delta-std 0 1 1 1",
    "--model.loss.focal-alpha -1",
    "--model.loss.box-weight inf",
    "--model.pyramid.levels 99",
    "--model.backbone.norm-epsilon -1",
    "--augment.short-sides 99999999999",
    "--augment.horizontal-flip 7",
    "--augment.min-visible nan",
    "--augment.crop 0 64",
    "--augment.crop -32 -32",
    "--data.workers 100000",
    "--run.seed -1",
    "--run.accumulate 0",
]


@pytest.mark.parametrize("given", SENSELESS)
def test_a_command_line_without_sense_names_the_option(given: str) -> None:
    words = given.split()
    option = [word for word in words if word.startswith("--")][-1]
    with pytest.raises(UserError, match=f"^{option} .* can't work: expected") as caught:
        parse(["atss_tiny", "--out", "x", *words])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("given", ["--schedule.steps " + "9" * 5000, "--schedule.epochs x", "--augment.crop 1 nan"])
def test_what_is_no_number_is_refused_by_the_parser(given: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse(["atss_tiny", "--out", "x", *given.split()])
    assert caught.value.code == 2
    assert "Traceback" not in capsys.readouterr().err


def test_the_recipes_are_within_their_bounds() -> None:
    for recipe in RECIPES.values():
        check_config(recipe())


class Parsing(Exception):
    """Raised in place of parsing."""


def options_of(module: str, monkeypatch: pytest.MonkeyPatch) -> list[argparse.Action]:
    """The options and arguments of a command."""
    found: list[argparse.Action] = []
    owner = next(one for one in argparse.ArgumentParser.__mro__ if "add_argument" in vars(one))  # groups share it
    add = vars(owner)["add_argument"]

    def record(*given: Any, **more: Any) -> argparse.Action:
        found.append(add(*given, **more))
        return found[-1]

    def stop(*_: Any) -> None:
        raise Parsing

    monkeypatch.setattr(owner, "add_argument", record)
    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", stop)
    monkeypatch.setattr(sys, "argv", [module])
    module = {"runtime.evaluate": "runtime.coco.command"}.get(module, module)
    folder = (ROOT / module.replace(".", "/")).is_dir()
    with pytest.raises(Parsing):
        importlib.import_module(f"{module}.__main__" if folder else module).main()
    assert found
    return found


@pytest.mark.parametrize(
    "module",
    # tyro reads what is beside a recipe; the commands' own tests try those bounds.
    sorted({one.module for one in COMMANDS.values()} - {"train", "train.show_batch", "runtime.packages"}),
)
def test_every_numeric_option_has_bounds(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [*map(str, HOSTILE[:-1]), "9" * 5000, "-1", "0", "1", "0.5", "1e400", "", "x", "\ud800"]
    for action in options_of(module, monkeypatch):
        assert action.type not in (int, float), f"{action.option_strings} has no bounds"
        numeric = isinstance(action.default, int | float) and not isinstance(action.default, bool)
        bounds = getattr(action.type, "bounds", None)
        assert isinstance(bounds, Constraint) or not numeric or action.nargs == 0, action.option_strings
        if bounds is None:
            continue
        assert action.default is None or all(
            map(bounds.holds, action.default if isinstance(action.default, list | tuple) else [action.default])
        )
        for text in texts:
            value, error = outcome(partial(action.type, text), argparse.ArgumentTypeError)  # type: ignore[arg-type]
            if error is None:
                assert abs(value) <= 1e9 or action.dest == "seed"
                assert bounds.holds(value)
            else:
                assert "expected" in str(error)
                assert len(str(error)) < 200
