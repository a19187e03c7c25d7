"""Runs deployed detectors and scores them. Needs neither torch nor, until it is used, a backend's library.

from runtime import Detector

with Detector("model.onnx") as detector:
    found = detector("photo.jpg")  # found.boxes, found.scores, found.classes
"""

from __future__ import annotations

from importlib import import_module

TYPE_CHECKING = False
if TYPE_CHECKING:  # typing would be most of the time that this package takes to import
    from typing import Any

    from .backends import open_backend
    from .coco.evaluation import evaluate
    from .detections import Detections
    from .detector import Detector

__all__ = ["Detections", "Detector", "evaluate", "open_backend"]

_HOMES = {
    "Detections": ".detections",
    "Detector": ".detector",
    "evaluate": ".coco.evaluation",
    "open_backend": ".backends",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used (PEP 562), so that `import runtime` alone loads no OpenCV."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name], __name__), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
