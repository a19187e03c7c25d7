"""Recipes: each is in the table under the name of its function, and nowhere is that name written again."""

from __future__ import annotations

import re
from pathlib import Path
from types import ModuleType

import pytest

from train.config import paper_recipes, recipes
from train.config.naming import by_name, recipe
from train.config.paper_recipes import SYSTEMS
from train.config.recipes import RECIPES, atss_tiny
from train.config.schema import Config


def functions(module: ModuleType) -> dict[str, object]:
    """The functions of a module that are recipes, by name."""
    own = {name: value for name, value in vars(module).items() if hasattr(value, "__wrapped__")}
    return {name: value for name, value in own.items() if value.__module__ == module.__name__}


def test_every_recipe_of_a_module_is_in_its_table() -> None:
    assert functions(paper_recipes) == SYSTEMS
    assert functions(recipes) | SYSTEMS == RECIPES
    assert len(RECIPES) > 30


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_has_the_name_of_its_function(name: str) -> None:
    config = RECIPES[name]()
    assert config.recipe == name
    assert config == RECIPES[name]()
    assert RECIPES[name].__doc__


@pytest.mark.parametrize("module", [recipes, paper_recipes])
def test_no_name_is_written_as_a_text(module: ModuleType) -> None:
    """The function's name in its definition and in the table's line, and no text that could differ from it."""
    source = Path(module.__file__ or "").read_text(encoding="utf-8")
    for name in functions(module):
        assert not re.search(rf"[\"']{name}[\"']", source), name


def test_a_new_recipe_is_a_function_and_a_line() -> None:
    @recipe
    def atss_mine(name: str) -> Config:
        """Mine."""
        return Config(recipe=name, preprocess=atss_tiny().preprocess)

    table = by_name(atss_tiny, atss_mine)
    assert list(table) == ["atss_tiny", "atss_mine"]
    assert table["atss_mine"]().recipe == "atss_mine"
    assert table["atss_mine"].__doc__ == "Mine."
