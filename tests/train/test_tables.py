"""Every table of parts has an entry for each name of its literal, and no other; what isn't in a table is refused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_args

import pytest

from runtime.errors import UserError
from train import config
from train.assign import ASSIGNERS
from train.model.backbones import BACKBONES
from train.tables import part_of
from train.trainer.optim import DECAYS, OPTIMIZERS

TABLES: dict[str, tuple[Any, Mapping[Any, Any]]] = {
    "backbone.name": (config.BackboneName, BACKBONES),
    "assignment.method": (config.AssignmentMethod, ASSIGNERS),
    "schedule.optimizer": (config.Optimizer, OPTIMIZERS),
    "schedule.decay": (config.Decay, DECAYS),
}


@pytest.mark.parametrize("setting", TABLES)
def test_a_table_has_the_names_of_its_literal(setting: str) -> None:
    literal, table = TABLES[setting]
    assert list(table) == list(get_args(literal))


@pytest.mark.parametrize("setting", TABLES)
def test_another_name_is_refused_with_those_that_there_are(setting: str) -> None:
    literal, table = TABLES[setting]
    expected = " or ".join(repr(name) for name in get_args(literal))
    with pytest.raises(UserError, match=rf"^{setting} is 'no_such', expected {expected}$"):
        part_of(table, "no_such", setting)
