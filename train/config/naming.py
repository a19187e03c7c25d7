"""Recipes are named by their functions: `recipe` passes a function its name, and `by_name` makes the table."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Protocol

from .schema import Config


class Recipe(Protocol):
    """A function without arguments that returns a configuration; its docstring says what for."""

    __name__: str

    def __call__(self) -> Config:
        """The configuration, freshly made; its `recipe` is the function's name."""
        ...


def recipe(make: Callable[[str], Config]) -> Recipe:
    """A decorator: it calls `make` with the function's name, so that the name is written once."""

    @functools.wraps(make)
    def build() -> Config:
        return make(make.__name__)

    return build


def by_name(*recipes: Recipe) -> dict[str, Recipe]:
    """A table of recipes, in this order."""
    return {recipe.__name__: recipe for recipe in recipes}
