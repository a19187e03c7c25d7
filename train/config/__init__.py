"""Configuration as frozen dataclasses, and the recipes that fill them.

The records and literals of a part are defined in the part's module; all can be imported from here.
"""

from ..assign import Assignment, AssignmentMethod, CenterSampling, KCounts
from ..data.augment import Augment
from ..geometry.anchors import Anchors, Outermost
from ..geometry.box_coder import Distance, DistanceUnit, Regression, RegressionStart
from ..loss.criterion import BoxLoss, Loss
from ..model.backbones import Backbone, BackboneName, BatchNorm
from ..model.fpn import ExtraFrom
from ..model.head import CenternessFrom
from ..model.ranking import Combine, Score, Scoring
from ..model.resnet import BottleneckStride
from .schema import (
    CompileLoss,
    Config,
    Data,
    Decay,
    DeviceName,
    Head,
    Model,
    Optimizer,
    Pyramid,
    Run,
    Schedule,
    TrackerName,
    TrainingPrecision,
)

__all__ = [
    "Anchors",
    "Assignment",
    "AssignmentMethod",
    "Augment",
    "Backbone",
    "BackboneName",
    "BatchNorm",
    "BottleneckStride",
    "BoxLoss",
    "CenterSampling",
    "CenternessFrom",
    "Combine",
    "CompileLoss",
    "Config",
    "Data",
    "Decay",
    "DeviceName",
    "Distance",
    "DistanceUnit",
    "ExtraFrom",
    "Head",
    "KCounts",
    "Loss",
    "Model",
    "Optimizer",
    "Outermost",
    "Pyramid",
    "Regression",
    "RegressionStart",
    "Run",
    "Schedule",
    "Score",
    "Scoring",
    "TrackerName",
    "TrainingPrecision",
]
