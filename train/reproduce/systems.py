"""The systems that are compared, and the configuration that they share.

Everything except positives, regression and anchors is equal: network, initial weights, images and their order,
augmentation, schedule, and all improvements of the paper's table of inconsistencies (GroupNorm, GIoU, centre in the
box, centerness, scales).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple

from runtime.manifest import Preprocess

from ..config import Anchors, Assignment, Augment, Backbone, Config, Data, Head, Model, Pyramid, Regression, Run
from ..config.recipes import atss_tiny
from ..geometry.anchors import strides

SIDE = 192  # px, of the square crops that are trained on and of the images' longer side
LEVELS = 4
# The side of the single square anchor, in strides; the paper has 8 on images four times as large. All settings that
# depend on scale follow this side: the smallest of 9 anchors has half of it, and FCOS's ranges are bounded by the
# levels' anchors, as by 64, 128, … px in the paper.
ANCHOR = 4.0
K = 9
K_SWEEP = (3, 5, 7, 11, 13, 15, 17, 19)
SCALE_SWEEP = (0.625, 0.75, 0.875, 1.125)  # of ANCHOR: the paper's 5, 6, 7 and 9 of 8
RATIO_SWEEP = (0.25, 0.5, 2.0, 4.0)  # height / width
STEPS = 700
BATCH = 8
BACKBONE = Backbone("resnet18", weights="none", stem_channels=16)
PREPROCESS = Preprocess(short_side=SIDE * 3 // 4, long_side=SIDE)  # the size that `shapes` draws

Part = Literal["crossings", "anchors", "k", "shape"]


class System(NamedTuple):
    """One row of the comparison."""

    key: str
    part: Part
    label: str
    paper_ap: float | None  # its authors' on COCO minival, R-50, 1x
    assignment: Assignment
    start: Literal["box", "point"] = "box"
    anchors: Anchors = Anchors(scale=ANCHOR)


@dataclass(frozen=True)
class Job:
    """One run of training: a system with a seed."""

    system: System
    seed: int
    config: Config

    @property
    def name(self) -> str:
        """The name of the job's folder."""
        return f"{self.system.key}-seed{self.seed}"


def level_limits(levels: int, anchor: float = ANCHOR) -> tuple[float, ...]:
    """FCOS's bounds between the levels, in px: the sides of the levels' anchors."""
    return tuple(anchor * stride for stride in strides(levels)[:-1])


def systems() -> list[System]:
    """All systems, in the order of training and of the report."""
    iou = Assignment(method="max_iou")
    scales = Assignment(method="fcos", level_limits=level_limits(LEVELS))
    lite = replace(scales, center_sampling="nearest", k=K)
    atss = Assignment(method="atss", k=K)
    nine = Anchors(scale=ANCHOR / 2, scales_per_octave=3, ratios=(0.5, 1.0, 2.0))
    crossings = [
        System("iou-box", "crossings", "IoU", 37.0, iou),
        System("iou-point", "crossings", "IoU", 36.9, iou, "point"),
        System("ssc-box", "crossings", "spatial and scale constraint", 37.8, scales),
        System("ssc-point", "crossings", "spatial and scale constraint", 37.8, scales, "point"),
        System("lite-box", "crossings", "k nearest, then scale ranges", None, lite),
        System("lite-point", "crossings", "k nearest, then scale ranges", 38.6, lite, "point"),
        System("atss-box", "crossings", "ATSS", 39.3, atss),
        System("atss-point", "crossings", "ATSS", 39.2, atss, "point"),
    ]
    more_anchors = [
        System("iou-box-a9", "anchors", "IoU, 9 anchors", 38.4, iou, anchors=nine),
        System("atss-box-a9", "anchors", "ATSS, 9 anchors", 39.2, atss, anchors=nine),
    ]
    k_sweep = [System(f"atss-box-k{k}", "k", f"ATSS, k = {k}", None, replace(atss, k=k)) for k in K_SWEEP]
    shapes = [Anchors(scale=ANCHOR * factor) for factor in SCALE_SWEEP]
    shapes += [Anchors(scale=ANCHOR, ratios=(ratio,)) for ratio in RATIO_SWEEP]
    shape_sweep = [
        System(
            f"atss-box-scale{a.scale:g}" if a.scale != ANCHOR else f"atss-box-ratio{a.ratios[0]:g}",
            "shape",
            f"ATSS, anchor of {a.scale:g} strides" if a.scale != ANCHOR else f"ATSS, anchor ratio {a.ratios[0]:g}",
            None,
            atss,
            anchors=a,
        )
        for a in shapes
    ]
    return crossings + more_anchors + k_sweep + shape_sweep


def jobs(data: Path, weights: Path, seeds: int, steps: int = STEPS) -> list[Job]:
    """All jobs in the order of their start: first the crossings, then everything else, each seed by seed.

    A run that is cut short therefore has complete seeds. `data` is the folder of a `shapes` data set, and `weights` is
    the file of the backbone's initial weights.
    """
    crossings = [system for system in systems() if system.part == "crossings"]
    sweeps = [system for system in systems() if system.part != "crossings"]
    return [
        Job(system, seed, configure(system, seed, data, weights, steps))
        for group in (crossings, sweeps)
        for seed in range(seeds)
        for system in group
    ]


def configure(system: System, seed: int, data: Path, weights: Path, steps: int) -> Config:
    """The configuration of a job; only its model and its seed depend on `system` and `seed`."""
    base = atss_tiny()
    return replace(
        base,
        recipe=f"reproduce {system.key}",
        preprocess=PREPROCESS,
        model=Model(
            backbone=replace(BACKBONE, weights=str(weights)),
            pyramid=Pyramid(channels=48, levels=LEVELS),
            head=Head(convolutions=2, group_norm_groups=8),
            anchors=system.anchors,
            regression=Regression(start=system.start),
            assignment=system.assignment,
        ),
        augment=Augment(
            short_side_min=round(0.8 * PREPROCESS.short_side),
            short_side_max=round(1.25 * PREPROCESS.short_side),
            crop=(SIDE, SIDE),
            brightness=0.1,
            contrast=0.2,
            saturation=0.3,
        ),
        data=Data(
            train_json=str(data / "train.json"),
            train_images=str(data / "train"),
            val_json=str(data / "val.json"),
            val_images=str(data / "val"),
            workers=0,
        ),
        schedule=replace(base.schedule, steps=steps, batch=BATCH, warmup_steps=max(1, steps // 12)),
        run=Run(seed=seed, device="cpu", log_every=50, checkpoint_every=100, evaluate_every=max(1, steps)),
    )
