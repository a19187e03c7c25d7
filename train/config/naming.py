"""How a recipe gets its name: it is that of its function, and stands nowhere else."""

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
    """A recipe from a function of its own name: used as a decorator, it passes the function's name to the function."""

    @functools.wraps(make)
    def build() -> Config:
        return make(make.__name__)

    return build


def by_name(*recipes: Recipe) -> dict[str, Recipe]:
    """A table of recipes, in this order."""
    return {recipe.__name__: recipe for recipe in recipes}
