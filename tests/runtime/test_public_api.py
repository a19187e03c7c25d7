"""What `runtime` offers by name, and that it costs nothing until it is used."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import runtime
from runtime.backends import BackendError
from runtime.coco import CocoDataset, CocoError
from runtime.coco.evaluation import score_detector
from runtime.detector import Detector
from runtime.errors import UserError
from runtime.tta import TtaSettings

from ..support.fakes import RedBackend, red_image
from .coco.test_evaluate import make_dataset


def python(code: str, repository: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], cwd=repository, capture_output=True, text=True, check=False)


def test_importing_runtime_loads_no_library(repository: Path) -> None:
    done = python("import runtime, sys; print({'cv2', 'numpy', 'pycocotools'} & set(sys.modules))", repository)
    assert done.stdout.strip() == "set()", done.stderr


@pytest.mark.parametrize("name", runtime.__all__)
def test_every_public_name_is_there(name: str, repository: Path) -> None:
    done = python(f"from runtime import {name}; print({name}.__name__, callable({name}))", repository)
    assert done.stdout.split() == [name, "True"], done.stderr
    assert name in dir(runtime)
    assert getattr(runtime, name).__doc__


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="'runtime' has no attribute 'Detecter'"):
        runtime.Detecter  # noqa: B018


def test_the_command_cannot_take_the_functions_place(repository: Path) -> None:
    """An imported `runtime.evaluate` would be an attribute of the package, and hide the function from then on."""
    code = """
try:
    import runtime.evaluate
except ImportError as error:
    print(error)
import runtime
print(type(runtime.evaluate))
"""
    message, kind = python(code, repository).stdout.splitlines()
    assert "use `from runtime import evaluate`" in message
    assert kind == "<class 'function'>"


@pytest.fixture
def dataset(tmp_path: Path) -> CocoDataset:
    return make_dataset(tmp_path)


def test_evaluate_takes_a_path_or_a_detector(dataset: CocoDataset, model: Path) -> None:
    expected = score_detector(Detector(RedBackend()), dataset)
    by_path = runtime.evaluate(model, dataset.json_path, dataset.root, backend="cpu", threads=1)
    by_text = runtime.evaluate(str(model), str(dataset.json_path), str(dataset.root), batch=2, backend="cpu", threads=1)
    with Detector(RedBackend()) as detector:
        opened = runtime.evaluate(detector, dataset.json_path, dataset.root)
        assert len(detector.detect([dataset.image(0)])) == 1, "it stays open"
    assert by_path.metrics == by_text.metrics == opened.metrics == expected.metrics
    assert opened.speed.images == len(dataset)


def test_evaluate_limits_and_filters(dataset: CocoDataset) -> None:
    detector = Detector(RedBackend())
    few = runtime.evaluate(detector, dataset.json_path, dataset.root, limit=2, classes=["red"])
    assert few.metrics.images == 2
    assert list(few.metrics.per_class) == ["red"]
    none = runtime.evaluate(detector, dataset.json_path, dataset.root, min_score=0.99)
    assert (len(none.results), none.metrics.values["AP"]) == (0, 0)


@pytest.mark.parametrize("source", [None, 3, b"model.onnx", ["model.onnx"], RedBackend])
def test_a_value_that_is_no_model_is_refused_at_the_call(source: Any, dataset: CocoDataset) -> None:
    with pytest.raises(UserError, match=r"^\w+ is no model; expected the path"):
        Detector(source)
    with pytest.raises(UserError, match=r"^\w+ is no model; expected the path"):
        runtime.evaluate(source, dataset.json_path, dataset.root)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"threads": -1}, r"'threads' is a number \(-1\), expected at least 0"),
        ({"threads": 1.5}, r"'threads' is a number \(1.5\), expected int"),
        ({"threads": "2"}, r"'threads' is a text"),
        ({"threads": 10**9}, "'threads' is a number"),
        ({"device": None}, "'device' is null"),
        ({"thread": 2}, "unknown field 'thread'"),
        ({"hint": "fast"}, "'hint' is a text"),
        ({"precision_hint": "f16"}, "'precision_hint' is a text"),
        ({"allow_fallback": 1}, "'allow_fallback' is a number"),
        ({"engine_cache": 3}, "engine_cache is a number"),
    ],
)
def test_backend_options_without_sense_are_named_at_the_call(given: dict[str, Any], message: str, model: Path) -> None:
    with pytest.raises(BackendError, match=message):
        Detector(model, **given)


def test_backend_options_as_callers_have_them(model: Path) -> None:
    with Detector(model, backend="cpu", threads=np.int64(1)) as detector:
        assert len(detector([red_image()])) == 1
    with pytest.raises(BackendError, match="threads: the backend is open already"):
        Detector(RedBackend(), threads=1)


@pytest.mark.parametrize("batch", ["4", 1.5, 0, 10**9, float("nan")])
def test_a_batch_without_sense_is_refused(batch: Any) -> None:
    with pytest.raises(BackendError, match="but the graph was exported for"):
        list(Detector(RedBackend()).stream([red_image()], batch))


def test_evaluate_refuses_what_it_would_drop(dataset: CocoDataset) -> None:
    detector = Detector(RedBackend())
    with pytest.raises(TypeError, match="threads: a detector that is open already takes no backend options"):
        runtime.evaluate(detector, dataset.json_path, dataset.root, threads=1)
    with pytest.raises(UserError, match=r"class '8': no such category in .*set\.json; known: 7 red, 9 other"):
        runtime.evaluate(detector, dataset.json_path, dataset.root, classes=[8])
    with pytest.raises(CocoError, match="cannot read the annotations"):
        runtime.evaluate(detector, dataset.root / "none.json", dataset.root)

    class Other:  # as a torch detector may be: no Detector, but detects
        manifest = detector.manifest
        detect_prepared = None

    with pytest.raises(TypeError, match="tta: a Other takes none"):
        runtime.evaluate(Other(), dataset.json_path, dataset.root, tta=TtaSettings(flip=True))  # type: ignore[arg-type]
