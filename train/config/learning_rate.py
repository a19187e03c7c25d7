"""Whether the learning rate goes with the batch: a recipe's rate was found for the recipe's batch."""

from __future__ import annotations

import math

from .recipes import RECIPES
from .schema import Config

TOLERANCE = 0.2  # share by which a learning rate may differ from the rule's


def unmatched_learning_rate(config: Config) -> str | None:
    """A line for the user where the batch is another than the recipe's and the learning rate is still the recipe's.

    SGD's rate follows the batch (arXiv 1706.02677), AdamW's its square root (arXiv 2205.10287). None where the rate is
    within `TOLERANCE` of the rule's, where it is another than the recipe's, since the user chose it, and where there is
    no recipe of that name or the optimizer is another.
    """
    if config.recipe not in RECIPES:
        return None
    own, given = RECIPES[config.recipe]().schedule, config.schedule
    if given.learning_rate != own.learning_rate or given.optimizer != own.optimizer:
        return None
    share = given.batch / own.batch
    factor, rule = (share, "linear") if given.optimizer == "sgd" else (math.sqrt(share), "square-root")
    if abs(1 / factor - 1) <= TOLERANCE:
        return None
    return (
        f"the learning rate {given.learning_rate:g} is {config.recipe}'s for batches of {own.batch}; for batches of "
        f"{given.batch} the {rule} rule gives --schedule.learning-rate {given.learning_rate * factor:.2g}"
    )
