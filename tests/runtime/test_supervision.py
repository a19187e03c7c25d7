"""Detections as supervision's: with supervision itself where it is installed, else with a stand-in for its class."""

from __future__ import annotations

import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest

from runtime import Detector
from runtime.detections import Detections, empty_detections
from runtime.errors import UserError
from tests.support.documentation import blocks
from tests.support.fakes import red_image


@dataclass
class StandIn:
    """The arguments of `supervision.Detections`, as it names them."""

    xyxy: np.ndarray
    confidence: np.ndarray
    class_id: np.ndarray
    data: dict[str, np.ndarray] = field(default_factory=dict)


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Any:
    try:
        import supervision
    except ImportError:
        supervision = SimpleNamespace(Detections=StandIn)
        monkeypatch.setitem(sys.modules, "supervision", supervision)
    return supervision


def some() -> Detections:
    boxes = np.array([[1.5, 2, 30, 40], [5, 6, 7, 8], [0, 0, 9, 9]], np.float32)
    return Detections(boxes, np.array([0.9, 0.5, 0.25], np.float32), np.array([2, 0, 2], np.int32))


def test_the_fields(library: Any) -> None:
    found = some()
    given = found.to_supervision(("red", "green", "größe"))
    assert isinstance(given, library.Detections)
    np.testing.assert_array_equal(given.xyxy, [[1.5, 2, 30, 40], [5, 6, 7, 8], [0, 0, 9, 9]])
    assert given.xyxy.dtype == given.confidence.dtype == np.float32
    assert given.class_id.dtype == np.dtype(int)
    np.testing.assert_array_equal(given.confidence, np.array([0.9, 0.5, 0.25], np.float32))
    assert given.class_id.tolist() == [2, 0, 2]
    assert given.data["class_name"].tolist() == ["größe", "red", "größe"]
    given.xyxy[:] = 0
    assert found.boxes.any(), "what the tools change stays theirs"
    assert "class_name" not in some().to_supervision().data


def test_none_at_all(library: Any) -> None:
    for classes in ((), ("red", "green")):
        given = empty_detections().to_supervision(classes)
        assert given.xyxy.shape == (0, 4)
        assert given.confidence.shape == given.class_id.shape == (0,)
        assert all(len(values) == 0 for values in given.data.values())


def test_without_the_library_it_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(UserError, match="install atss-toolkit with the extra supervision") as raised:
        some().to_supervision()
    assert "\n" not in str(raised.value)


def test_the_library_filters_draws_and_tracks(model: Path) -> None:
    supervision = pytest.importorskip("supervision", reason="pip install 'atss-toolkit[supervision]'")
    image = red_image(60, 80, (10, 20, 50, 40))
    with Detector(model, backend="cpu") as detector:
        given = detector(image).to_supervision(detector.classes)
    assert len(given) == 1
    assert given["class_name"].tolist() == ["red"]
    assert len(given[given.confidence > 0.95]) == 0
    assert len(supervision.Detections.merge([given, given])) == 2
    drawn = supervision.BoxAnnotator().annotate(image.copy(), given)
    assert (drawn != image).any()
    zone = supervision.PolygonZone(np.array([[0, 0], [79, 0], [79, 59], [0, 59]]))
    assert zone.trigger(given).tolist() == [True]


def test_the_lines_of_the_page_run(
    model: Path, tmp_path: Path, repository: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("supervision", reason="pip install 'atss-toolkit[supervision]'")
    (text,) = [b.text for b in blocks(repository / "docs/hand-over.md", "hand-over") if "import supervision" in b.text]
    monkeypatch.chdir(tmp_path)
    shutil.copy(model, "model.onnx")
    cv2.imwrite("photo.jpg", red_image(60, 80, (10, 20, 50, 40))[..., ::-1])
    exec(compile(text, "hand-over.md", "exec"), {})
    assert capsys.readouterr().out == "['red']\n"
    assert cv2.imread("annotated.jpg").shape == (60, 80, 3)
