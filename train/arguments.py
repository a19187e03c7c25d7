"""A recipe, its overrides and a command's own options, read from a command line."""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

import tyro

from runtime.command_names import program
from runtime.errors import UserError
from runtime.terminal import own_codes

from .api import starting_config
from .config import Config
from .config.check import check_config
from .config.overrides import settled
from .config.recipes import RECIPES

Options = TypeVar("Options")


def parse_recipe(arguments: list[str], options: type[Options], module: str, usage: str) -> tuple[Config, Options]:
    """Recipe name and overrides → configuration and a command's options, a dataclass that tyro reads.

    Unknown names and wrong types end the program. Raises UserError for an unknown recipe and for a value that can't
    work; `usage` is shown where no recipe is given.
    """
    if not arguments:
        raise UserError(f"no recipe given; {usage}")
    recipe = arguments[0]
    if recipe.startswith("-"):
        found = next((name for name in arguments if name in RECIPES), None)
        missing = f"no recipe before {recipe}" if found is None else f"the recipe comes first: {found} before {recipe}"
        raise UserError(f"{missing}; {usage}")
    default = starting_config(recipe)
    description = (RECIPES[recipe].__doc__ or "") if recipe in RECIPES else f"Start from {recipe}"

    def command(options: Any, config: Any = default) -> tuple[Config, Options]:
        return config, options

    unnamed = tyro.conf.arg(name="")
    command.__annotations__ = {"options": Annotated[options, unnamed], "config": Annotated[Config, unnamed]}
    with own_codes():
        config, chosen = tyro.cli(
            command, prog=f"{program(module)} {recipe}", args=arguments[1:], description=description
        )
    given = _names(arguments[1:])
    config = settled(config, default, given)
    check_config(config)
    return config, chosen


def _names(arguments: list[str]) -> set[str]:
    """The settings that a command line names, in the configuration's spelling."""
    return {a.removeprefix("--").split("=")[0].replace("-", "_") for a in arguments if a.startswith("--")}
