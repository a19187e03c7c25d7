"""What a server answers about a model, and what a model answers to an image, checked: another program may listen there.

Numbers of 64 bits are texts in the JSON form of Triton's messages.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from ...detections import Detections
from . import contract


class AnswerError(Exception):
    """An answer that isn't one of a Triton server, or not of a model of this toolkit. The text says what is wrong."""


class ModelState(NamedTuple):
    """An entry of the server's index of models."""

    name: str
    state: str  # such as READY, with the server's reason where it gave one


def tensors(config: Any, kind: str) -> dict[str, contract.TensorSpec]:
    """The model's tensors of a kind ("input" or "output") by name, from its configuration. Raises AnswerError."""
    found: dict[str, contract.TensorSpec] = {}
    for entry in _list(_object(config, "the model's configuration").get(kind, []), f"the model's {kind}s"):
        tensor = _object(entry, f"an {kind} of the model")
        name = _text(tensor.get("name"), f"the name of an {kind}")
        dims = _list(tensor.get("dims", []), f"the dims of {name!r}")
        found[name] = contract.TensorSpec(
            _text(tensor.get("data_type"), f"the type of {name!r}"),
            tuple(_number(n, f"the dims of {name!r}") for n in dims),
        )
    return found


def manifest_text(config: Any) -> str | None:
    """The manifest in the parameters of a model's configuration; None where there is none. Raises AnswerError."""
    parameters = _object(_object(config, "the model's configuration").get("parameters", {}), "the model's parameters")
    if contract.MANIFEST not in parameters:
        return None
    value = _object(parameters[contract.MANIFEST], "the parameter of the manifest").get("string_value")
    return None if value is None else _text(value, "the manifest")


def index(answer: Any) -> list[ModelState]:
    """The server's models. Raises AnswerError."""
    entries = answer.get("models", []) if isinstance(answer, dict) else answer  # over gRPC, over HTTP
    return [_state(_object(entry, "a model of the index")) for entry in _list(entries, "the index of models")]


def server_name(answer: Any) -> str:
    """Name and version of the server. Raises AnswerError."""
    about = _object(answer, "the server's description")
    return " ".join(filter(None, (_text(about.get(key, ""), f"the server's {key}") for key in ("name", "version"))))


def detections(boxes: Any, scores: Any, classes: Any, class_count: int) -> Detections:
    """The detections of one image from the arrays of an answer, each [1, …]. Raises AnswerError.

    `class_count` is the number of the model's classes.
    """
    for name, array, kind in (("boxes", boxes, "f"), ("scores", scores, "f"), ("classes", classes, "i")):
        if not isinstance(array, np.ndarray) or array.ndim < 1 or len(array) != 1 or array.dtype.kind != kind:
            raise AnswerError(f"{name} are not an array for one image")
    count = scores[0].size
    if scores[0].shape != (count,) or classes[0].shape != (count,) or boxes[0].size != 4 * count:
        shapes = ", ".join(str(array.shape) for array in (boxes, scores, classes))
        raise AnswerError(f"boxes, scores and classes have the shapes {shapes}")
    if not (np.isfinite(boxes).all() and np.isfinite(scores).all()):
        raise AnswerError("a box or a score is not a finite number")
    if count and not 0 <= classes.min() <= classes.max() < class_count:
        raise AnswerError(f"classes are {classes.min()} to {classes.max()}, the model has {class_count}")
    return Detections(boxes[0].reshape(-1, 4), scores[0], classes[0])


def _state(entry: dict[str, Any]) -> ModelState:
    told = (_text(entry.get(key, ""), f"the {key} of a model") for key in ("state", "reason"))
    return ModelState(_text(entry.get("name"), "the name of a model"), " ".join(filter(None, told)))


def _object(value: Any, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise AnswerError(f"{what} is {type(value).__name__}, expected an object")
    return value


def _list(value: Any, what: str) -> list[Any]:
    if not isinstance(value, list):
        raise AnswerError(f"{what}: {type(value).__name__}, expected a list")
    return value


def _text(value: Any, what: str) -> str:
    if not isinstance(value, str):
        raise AnswerError(f"{what} is {type(value).__name__}, expected a text")
    return value


def _number(value: Any, what: str) -> int:
    try:
        return int(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise AnswerError(f"{what}: {type(value).__name__}, expected whole numbers") from error
