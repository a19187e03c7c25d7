"""What a detector and its training are made of, as frozen dataclasses.

A recipe (`recipes.py`) returns a `Config`; the command line overrides single fields; a checkpoint carries it.
The parts' own parameter records are its fields (`Anchors`, `Loss`, …), and the parts don't know the configuration: only
a room's builder (`model/build.py`, `loss/build.py`) reads it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from runtime.manifest import Preprocess, Thresholds
from runtime.names import unknown_name

from ..assign import Assignment
from ..data.augment import Augment
from ..geometry.anchors import Anchors
from ..geometry.box_coder import Regression
from ..loss.criterion import Loss
from ..model.backbones import Backbone
from ..model.fpn import ExtraFrom
from ..model.head import CenternessFrom
from ..model.postprocess import Scoring

Optimizer = Literal["sgd", "adamw"]
Decay = Literal["step", "cosine"]
DeviceName = Literal["auto", "cpu", "cuda"]
TrainingPrecision = Literal["auto", "fp32", "bf16", "fp16"]


@dataclass(frozen=True)
class Pyramid:
    """The feature pyramid: level l has stride 8 · 2^l."""

    channels: int = 256
    levels: int = 5
    # What the levels beyond the third begin from, and whether there is a ReLU between two of them.
    extra_from: ExtraFrom = "p5"
    extra_relu: bool = True


@dataclass(frozen=True)
class Head:
    """The head shared by all levels: two towers, then class, box and optional centerness convolutions."""

    convolutions: int = 4
    group_norm_groups: int = 32  # 0: no normalisation
    tower_bias: bool = False  # of convolutions that GroupNorm follows; without one they always have it
    # The tower that centerness is predicted from; "none": without centerness the score is the class's alone.
    centerness: CenternessFrom = "box"
    deformable: bool = False  # the last convolution of each tower
    level_scales: bool = True  # a trainable factor per level on the box regression
    # The focal loss starts stable when every anchor first predicts each class with this probability.
    prior_probability: float = 0.01

    @property
    def has_centerness(self) -> bool:
        """Whether centerness is predicted."""
        match self.centerness:
            case "none":
                return False
            case "box" | "class":
                return True
            case _:
                unknown_name(self.centerness, "head.centerness", CenternessFrom)


@dataclass(frozen=True)
class Model:
    """Everything that `build_detector` and the criterion need."""

    backbone: Backbone = field(default_factory=Backbone)
    pyramid: Pyramid = field(default_factory=Pyramid)
    head: Head = field(default_factory=Head)
    anchors: Anchors = field(default_factory=Anchors)
    regression: Regression = field(default_factory=Regression)
    assignment: Assignment = field(default_factory=Assignment)
    loss: Loss = field(default_factory=Loss)
    scoring: Scoring = field(default_factory=Scoring)


@dataclass(frozen=True)
class Data:
    """Where images and annotations lie (COCO format), and how they are read."""

    train_json: str = ""
    train_images: str = ""
    val_json: str = ""  # empty: no evaluation while training
    val_images: str = ""
    # COCO trains on the images with at least one box; a data set with true negatives keeps them.
    keep_empty: bool = True
    # The images of a batch are all landscape or all portrait, so that little of a canvas is padding. Has no effect on
    # crops, which all have one size.
    group_by_aspect: bool = True
    workers: int = 2  # loader processes; 0 loads in the training process


@dataclass(frozen=True)
class Schedule:
    """Length, optimizer and learning rate, in steps (one step is one batch)."""

    steps: int = 90_000
    # Where given, so many passes over the training images in place of `steps`; the milestones shift in proportion.
    epochs: float = 0.0
    repeat: float = 1.0  # so many times longer, milestones too: 2 makes a "2x" of a 1x schedule
    batch: int = 16  # images of a step, over all processes
    optimizer: Optimizer = "sgd"
    learning_rate: float = 0.01
    backbone_factor: float = 1.0  # of the learning rate
    momentum: float = 0.9  # sgd
    betas: tuple[float, float] = (0.9, 0.999)  # adamw
    weight_decay: float = 1e-4
    decay: Decay = "step"
    milestones: tuple[int, ...] = (60_000, 80_000)  # × 0.1 each, for "step"
    warmup_steps: int = 500
    warmup_start: float = 0.001  # of the learning rate
    clip_norm: float = 35.0  # of all gradients together; 0 clips nothing
    ema: float = 0.0  # decay of the averaged weights that are evaluated and deployed; 0 averages nothing


@dataclass(frozen=True)
class Run:
    """How a run behaves: precision, logs, checkpoints."""

    seed: int = 0
    # Checkpoint whose weights training begins with, for fine-tuning; the class convolution starts anew where the number
    # of classes is another.
    init: str = ""
    device: DeviceName = "auto"
    # "auto": bf16 where the processor has it in hardware, else fp32.
    precision: TrainingPrecision = "auto"
    channels_last: bool = True
    compile: bool = False  # the network, with torch.compile
    # Each process works through its share of a batch in so many pieces, to need less memory. The losses stay the same.
    accumulate: int = 1
    log_every: int = 20  # steps
    checkpoint_every: int = 1000
    evaluate_every: int = 10_000
    evaluate_limit: int = 0  # images of the validation set used while training; 0 all


@dataclass(frozen=True)
class Config:
    """A recipe: the model and everything that its training needs besides the data."""

    recipe: str
    preprocess: Preprocess
    model: Model = field(default_factory=Model)
    thresholds: Thresholds = field(default_factory=Thresholds)
    augment: Augment = field(default_factory=Augment)
    data: Data = field(default_factory=Data)
    schedule: Schedule = field(default_factory=Schedule)
    run: Run = field(default_factory=Run)
