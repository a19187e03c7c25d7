"""What a detector and its training are made of, as frozen dataclasses.

A recipe (`recipes.py`) returns a `Config`; the command line overrides single fields; a checkpoint carries it.
The parts' own parameter records are its fields (`Anchors`, `Loss`, …), and the parts don't know the configuration: only
`train/build.py` reads it for them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from runtime.images.limit import MAX_MEGAPIXELS
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
from ..model.ranking import Scoring

Optimizer = Literal["sgd", "adamw"]
Decay = Literal["step", "cosine"]
DeviceName = Literal["auto", "cpu", "cuda"]
TrainingPrecision = Literal["auto", "fp32", "bf16", "fp16"]
CompileLoss = Literal["auto", "always", "never"]


@dataclass(frozen=True)
class Pyramid:
    """The feature pyramid: level l has stride 8 · 2^l."""

    channels: int = 256  # of every level
    levels: int = 5  # 5 is P3 to P7
    extra_from: ExtraFrom = "p5"  # the map that the levels beyond the third are computed from
    extra_relu: bool = True  # a ReLU between these levels


@dataclass(frozen=True)
class Head:
    """The head shared by all levels: two towers, then class, box and optional centerness convolutions."""

    convolutions: int = 4  # 3×3 convolutions of each tower
    group_norm_groups: int = 32  # groups of GroupNorm; 0: no normalisation
    tower_bias: bool = False  # a bias before GroupNorm; without GroupNorm there always is one
    # The tower that predicts centerness; "none": there is no centerness, and the score is the class score.
    centerness: CenternessFrom = "box"
    deformable: bool = False  # make the last convolution of each tower deformable
    level_scales: bool = True  # a trainable factor per level on the box regression
    # The probability that every anchor first predicts for each class; a low one makes the focal loss start stable.
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
    """The parts of a detector: what `build_detector`, `build_criterion` and `build_postprocess` read."""

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
    """The data sets (COCO format), and how they are read."""

    train_json: str = ""  # annotations of the training set
    train_images: str = ""  # folder of the training images
    val_json: str = ""  # annotations of the validation set; empty: no evaluation while training
    val_images: str = ""  # folder of the validation images
    # Whether to train on images without a box; recipes for COCO don't.
    keep_empty: bool = True
    # Make the images of a batch all landscape or all portrait, so that less of a canvas is padding. This has no effect
    # on crops, which all have the same size.
    group_by_aspect: bool = True
    workers: int = 2  # loader processes; 0 loads in the training process
    # Larger images are not read, since a small file can claim any size.
    max_megapixels: float = field(default=MAX_MEGAPIXELS, metadata={"absent": MAX_MEGAPIXELS})


@dataclass(frozen=True)
class Schedule:
    """Length, optimizer and learning rate, in steps (one step is one batch)."""

    steps: int = 90_000  # one step is one batch
    # Above 0: the number of passes over the training images, in place of `steps`; milestones are scaled with it.
    epochs: float = 0.0
    repeat: float = 1.0  # factor of steps and milestones: 2 makes a "2x" schedule of a 1x schedule
    batch: int = 16  # images of a step, of all processes together
    optimizer: Optimizer = "sgd"
    learning_rate: float = 0.01  # after the warm-up and before the decay
    backbone_factor: float = 1.0  # factor of the backbone's learning rate
    momentum: float = 0.9  # of SGD
    betas: tuple[float, float] = (0.9, 0.999)  # of AdamW
    weight_decay: float = 1e-4  # of weights; biases, norms and scales have none
    decay: Decay = "step"  # how the learning rate falls: to a tenth at each milestone, or along half a cosine
    milestones: tuple[int, ...] = (60_000, 80_000)  # steps at which decay "step" lowers the learning rate
    warmup_steps: int = 500  # steps in which the learning rate rises linearly
    warmup_start: float = 0.001  # factor of the learning rate at the first step
    clip_norm: float = 35.0  # largest norm of all gradients together; 0 clips nothing
    ema: float = 0.0  # decay of the averaged weights, which are evaluated and deployed; 0: no averaging


@dataclass(frozen=True)
class Run:
    """How a run behaves: seed, device, precision, logs, checkpoints."""

    seed: int = 0  # of initial weights, image order and augmentation
    # A checkpoint to fine-tune: training starts with its weights. The class convolution starts at random where the
    # number of classes differs.
    init: str = ""
    device: DeviceName = "auto"  # "auto": the GPU where there is one
    # "auto": bf16 where the device has it in hardware, else fp32.
    precision: TrainingPrecision = "auto"
    channels_last: bool = True  # memory layout of the network; faster on most devices
    compile: bool = False  # compile the network with torch.compile
    # Compile assignment and losses with torch.compile; "auto": on a GPU, in runs of 10,000 steps or more.
    compile_loss: CompileLoss = field(default="auto", metadata={"absent": "auto"})
    # Number of pieces in which each process computes its share of a batch, to need less memory; the losses stay.
    accumulate: int = 1
    log_every: int = 20  # steps between two lines of the log
    checkpoint_every: int = 1000  # steps between two checkpoints
    evaluate_every: int = 10_000  # steps between two evaluations on the validation set
    evaluate_limit: int = 0  # first images of the validation set to evaluate on before the last step; 0: all


@dataclass(frozen=True)
class Config:
    """The whole configuration: the model, and everything that its training and deployment depend on."""

    recipe: str
    preprocess: Preprocess
    model: Model = field(default_factory=Model)
    thresholds: Thresholds = field(default_factory=Thresholds)
    augment: Augment = field(default_factory=Augment)
    data: Data = field(default_factory=Data)
    schedule: Schedule = field(default_factory=Schedule)
    run: Run = field(default_factory=Run)
