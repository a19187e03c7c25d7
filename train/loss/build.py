"""Builds the criterion that a configuration describes: the one module of this room that reads the configuration."""

from __future__ import annotations

from .. import config
from ..assign import build_assigner
from .criterion import Criterion


def build_criterion(model: config.Model) -> Criterion:
    """The criterion of a model. Raises UserError for an unknown assigner."""
    return Criterion(
        levels=model.pyramid.levels,
        anchors=model.anchors,
        regression=model.regression,
        assigner=build_assigner(model.assignment),
        has_centerness=model.head.has_centerness,
        loss=model.loss,
    )
