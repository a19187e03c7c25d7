"""The built-in data set `shapes`: images drawn from a seed, with their annotations in COCO format."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .dataset import Settings, generate, make_image

__all__ = ["Settings", "generate", "make_image"]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: the command has to answer signals before it imports torch."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from . import dataset

    return getattr(dataset, name)
