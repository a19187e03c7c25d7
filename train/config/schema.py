"""What a detector and its training are made of, as frozen dataclasses.

A recipe (`recipes.py`) returns a `Config`; the command line overrides single fields; a checkpoint carries it.
The parts' own parameter records are its fields (`Anchors`, `Loss`, …), and the parts don't know the configuration: only
`train/build.py` reads it for them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated, Literal

from runtime.bounds import Batch, Bounds, Count, Fraction, Items, Megapixels, Name, PathText, Positive, Seed
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
TrackerName = Literal["tensorboard", "wandb", "mlflow"]
Channels = Annotated[int, Bounds(1, 2**14)]
Factor = Annotated[float, Bounds(0, 1000)]
MovingAverage = Annotated[float, Bounds(0, 1, below=True)]  # the share that stays at each step


@dataclass(frozen=True)
class Pyramid:
    """The feature pyramid: level l has stride 8 · 2^l."""

    channels: Channels = 256  # of every level
    levels: Annotated[int, Bounds(3, 8)] = 5  # from P3 on; 5 is P3 to P7
    extra_from: ExtraFrom = "p5"  # the map that the levels beyond the third are computed from
    extra_relu: bool = True  # a ReLU between these levels


@dataclass(frozen=True)
class Head:
    """The head shared by all levels: two towers, then class, box and optional centerness convolutions."""

    convolutions: Annotated[int, Bounds(0, 64)] = 4  # 3×3 convolutions of each tower
    group_norm_groups: Annotated[int, Bounds(0, 2**14)] = 32  # groups of GroupNorm; 0: no normalisation
    tower_bias: bool = False  # a bias before GroupNorm; without GroupNorm there always is one
    # The tower that predicts centerness; "none": there is no centerness, and the score is the class score.
    centerness: CenternessFrom = "box"
    deformable: bool = False  # make the last convolution of each tower deformable
    level_scales: bool = True  # a trainable factor per level on the box regression
    # The probability that every anchor first predicts for each class; a low one makes the focal loss start stable.
    prior_probability: Annotated[float, Bounds(0, 1, above=True, below=True)] = 0.01

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
    """The data sets, and how they are read."""

    train_json: PathText = ""  # annotations (COCO format) of the training set
    train_images: PathText = ""  # folder of the training images
    val_json: PathText = ""  # annotations (COCO format) of the validation set; empty: no evaluation while training
    val_images: PathText = ""  # folder of the validation images
    # Whether to train on images without a box; recipes for COCO don't.
    keep_empty: bool = True
    # Make the images of a batch all landscape or all portrait, so that less of a canvas is padding. This has no effect
    # on crops, which all have the same size.
    group_by_aspect: bool = True
    workers: Annotated[int, Bounds(0, 1024)] = 2  # loader processes; 0 loads in the training process
    # Whether file names of the annotations may lead out of the folder of the images.
    allow_outside: bool = field(default=False, metadata={"absent": False})
    # Larger images are not read, since a small file can claim any size.
    max_megapixels: Megapixels = field(default=MAX_MEGAPIXELS, metadata={"absent": MAX_MEGAPIXELS})
    # The training set in any layout: yolo:data.yaml, voc:FOLDER, createml:FILE or coco:FILE, with #SPLIT for another
    # split than "train". It replaces train_json and train_images.
    train: PathText = field(default="", metadata={"absent": ""})
    val: PathText = field(default="", metadata={"absent": ""})  # the validation set likewise, by default of split "val"
    # Above 0: images with a class that fewer than this share of the images have are repeated within an epoch, by the
    # factor √(this / the class's share).
    repeat_threshold: Fraction = field(default=0.0, metadata={"absent": 0.0})


@dataclass(frozen=True)
class Schedule:
    """Length, optimizer and learning rate, in steps (one step is one batch)."""

    steps: Positive = 90_000  # the run's length; one step is one batch
    # Above 0: the number of passes over the training images, in place of `steps`; milestones are scaled with it.
    epochs: Annotated[float, Bounds(0, 1e6)] = 0.0
    # Factor of steps and milestones: 2 makes a "2x" schedule of a 1x schedule.
    repeat: Annotated[float, Bounds(0, 1000, above=True)] = 1.0
    batch: Batch = 16  # images of a step, of all processes together
    optimizer: Optimizer = "sgd"  # "sgd" with momentum, or "adamw"
    learning_rate: Annotated[float, Bounds(0, 1000, above=True)] = 0.01  # after the warm-up and before the decay
    backbone_factor: Factor = 1.0  # factor of the backbone's learning rate
    momentum: MovingAverage = 0.9  # of SGD
    betas: tuple[MovingAverage, MovingAverage] = (0.9, 0.999)  # of AdamW
    weight_decay: Factor = 1e-4  # of weights; biases, norms and scales have none
    decay: Decay = "step"  # how the learning rate falls: to a tenth at each milestone, or along half a cosine
    # Steps at which decay "step" lowers the learning rate.
    milestones: Annotated[tuple[Positive, ...], Items(0, 1000, rising=True)] = (60_000, 80_000)
    warmup_steps: Count = 500  # steps in which the learning rate rises linearly
    warmup_start: Fraction = 0.001  # factor of the learning rate at the first step
    clip_norm: Annotated[float, Bounds(0, 1e9)] = 35.0  # largest norm of all gradients together; 0 clips nothing
    ema: MovingAverage = 0.0  # decay of the averaged weights, which are evaluated and deployed; 0: no averaging
    # Above 0: the run ends after this many evaluations without a better AP.
    patience: Count = field(default=0, metadata={"absent": 0})


@dataclass(frozen=True)
class Run:
    """How a run behaves: seed, device, precision, logs, checkpoints."""

    seed: Seed = 0  # of initial weights, image order and augmentation
    # A checkpoint to fine-tune: training starts with its weights. The class convolution starts at random where the
    # number of classes differs.
    init: PathText = ""
    device: DeviceName = "auto"  # "auto": the GPU where there is one
    # "auto": bf16 where the device has it in hardware, else fp32.
    precision: TrainingPrecision = "auto"
    channels_last: bool = True  # memory layout of the network; faster on most devices
    compile: bool = False  # compile the network with torch.compile
    # Compile assignment and losses with torch.compile; "auto": on a GPU, in runs of 10,000 steps or more.
    compile_loss: CompileLoss = field(default="auto", metadata={"absent": "auto"})
    # Number of pieces in which each process computes its share of a batch, to need less memory; the losses stay.
    accumulate: Batch = 1
    log_every: Positive = 20  # steps between two lines of the log
    checkpoint_every: Positive = 1000  # steps between two checkpoints
    evaluate_every: Positive = 10_000  # steps between two evaluations on the validation set
    evaluate_limit: Count = 0  # first images of the validation set to evaluate on before the last step; 0: all
    # Where the log's numbers go beside log.jsonl. wandb and mlflow are extras of their own; they write files alone
    # unless WANDB_MODE=online or MLFLOW_TRACKING_URI is set.
    log: Annotated[tuple[TrackerName, ...], Items(0, 3, distinct=True)] = field(
        default=("tensorboard",), metadata={"absent": ["tensorboard"]}
    )


@dataclass(frozen=True)
class Config:
    """The whole configuration: the model, and everything that its training and deployment depend on."""

    recipe: Name  # the name that checkpoints and exported models state
    preprocess: Preprocess
    model: Model = field(default_factory=Model)
    thresholds: Thresholds = field(default_factory=Thresholds)
    augment: Augment = field(default_factory=Augment)
    data: Data = field(default_factory=Data)
    schedule: Schedule = field(default_factory=Schedule)
    run: Run = field(default_factory=Run)

    def conflicts(self) -> Iterator[tuple[str, str]]:
        """See `bounds.Conflicts`."""
        channels, groups = self.model.pyramid.channels, self.model.head.group_norm_groups
        if groups and channels % groups:
            yield "model.head.group_norm_groups", f"0, or a divisor of the pyramid's {channels} channels"
        rule, levels = self.model.assignment, self.model.pyramid.levels
        if rule.method == "fcos" and len(rule.level_limits) < levels - 1:
            yield "model.assignment.level_limits", f"one less than pyramid levels, here {levels}, or more"
        if self.model.loss.box == "smooth_l1" and self.model.regression.start != "box":
            yield "model.loss.box", "giou or iou, where boxes are regressed from points"
