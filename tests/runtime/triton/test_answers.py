"""What a server answers is checked: no answer of another program, or of another model, is an exception of Python."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from runtime.backends.triton import answers
from runtime.backends.triton.answers import AnswerError
from runtime.backends.triton.contract import TensorSpec

CONFIG: dict[str, Any] = {
    "input": [{"name": "pixels", "data_type": "TYPE_UINT8", "dims": ["-1", "-1", "3"]}],
    "output": [],
    "parameters": {"manifest": {"string_value": "{}"}},
}


def test_a_configuration_is_read() -> None:
    assert answers.tensors(CONFIG, "input") == {"pixels": TensorSpec("TYPE_UINT8", (-1, -1, 3))}
    assert answers.tensors(CONFIG, "output") == answers.tensors({}, "input") == {}
    assert answers.manifest_text(CONFIG) == "{}"
    assert answers.manifest_text({}) is None


@pytest.mark.parametrize("wrong", [None, 3, "a", [], [3], [{}], [{"name": 3}], [{"name": "a"}]])
def test_a_configuration_of_another_program_is_named(wrong: Any) -> None:
    if wrong != []:
        with pytest.raises(AnswerError, match=r"input|'a'"):
            answers.tensors({"input": wrong}, "input")
    for parameters in ({"parameters": wrong}, {"parameters": {"manifest": wrong}}):
        if parameters["parameters"] != {}:
            with pytest.raises(AnswerError, match=r"parameter"):
                answers.manifest_text(parameters)


@pytest.mark.parametrize("dims", [3, ["a"], [None], [[1]], [float("inf")]])
def test_dims_are_whole_numbers(dims: Any) -> None:
    with pytest.raises(AnswerError, match="the dims of 'a'"):
        answers.tensors({"input": [{"name": "a", "data_type": "TYPE_FP32", "dims": dims}]}, "input")


def test_an_index_is_read_as_both_protocols_write_it() -> None:
    entry = {"name": "red", "state": "UNAVAILABLE", "reason": "because"}
    assert answers.index({"models": [entry]}) == answers.index([entry]) == [("red", "UNAVAILABLE because")]
    assert answers.index({}) == answers.index([]) == []
    for wrong in (None, 3, [3], [{}], {"models": None}, [{"name": "a", "state": 3}]):
        with pytest.raises(AnswerError):
            answers.index(wrong)


def test_a_server_has_a_name() -> None:
    assert answers.server_name({"name": "triton", "version": "2.51.0"}) == "triton 2.51.0"
    for wrong in (None, [], {"name": 3}):
        with pytest.raises(AnswerError):
            answers.server_name(wrong)


BOXES, SCORES, CLASSES = np.ones((1, 2, 4), np.float32), np.ones((1, 2), np.float32), np.zeros((1, 2), np.int32)


def test_detections_are_those_of_one_image() -> None:
    found = answers.detections(BOXES, SCORES, CLASSES, 1)
    assert (found.boxes.shape, len(found)) == ((2, 4), 2)
    assert len(answers.detections(BOXES[:, :0], SCORES[:, :0], CLASSES[:, :0], 1)) == 0


@pytest.mark.parametrize(
    ("arrays", "told"),
    [
        ((None, SCORES, CLASSES), "boxes are not an array"),
        ((BOXES, SCORES[0, 0], CLASSES), "scores are not an array"),
        ((BOXES, SCORES, SCORES), "classes are not an array"),
        ((np.repeat(BOXES, 2, 0), SCORES, CLASSES), "boxes are not an array for one image"),
        ((BOXES[:, :1], SCORES, CLASSES), "shapes"),
        ((BOXES, SCORES[..., None], CLASSES), "shapes"),
        ((BOXES, SCORES, CLASSES[:, :1]), "shapes"),
        ((BOXES * np.nan, SCORES, CLASSES), "not a finite number"),
        ((BOXES, SCORES * np.inf, CLASSES), "not a finite number"),
        ((BOXES, SCORES, CLASSES + 1), "classes are 1 to 1, the model has 1"),
        ((BOXES, SCORES, CLASSES - 1), "classes are -1 to -1"),
    ],
)
def test_detections_that_make_no_sense_are_named(arrays: tuple[Any, Any, Any], told: str) -> None:
    with pytest.raises(AnswerError, match=told):
        answers.detections(*arrays, 1)
