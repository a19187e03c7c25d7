"""Recipes: plain functions that return a configuration. `python -m train RECIPE` finds one in `RECIPES`."""

from __future__ import annotations

from dataclasses import replace

from runtime.manifest import Preprocess

from .naming import Recipe, by_name, recipe
from .paper_recipes import SYSTEMS
from .schema import Anchors, Augment, Backbone, Config, Data, Head, Model, Pyramid, Run, Schedule


@recipe
def atss_r50_fpn_1x(name: str) -> Config:
    """The paper's detector: ResNet-50, one square anchor of 8 strides, 90k steps of 16 images (39.3 AP on COCO)."""
    return Config(
        recipe=name,
        preprocess=Preprocess(short_side=800, long_side=1333),
        # The stem, the first stage and all batch norms keep their ImageNet weights, as in RetinaNet and FCOS.
        model=Model(backbone=Backbone("resnet50", frozen_stages=2, batch_norm="frozen")),
        data=Data(keep_empty=False, workers=4),
    )


@recipe
def atss_r18_fpn(name: str) -> Config:
    """A lighter detector for a GPU: ResNet-18, shorter side 640, AdamW and scale jitter."""
    return Config(
        recipe=name,
        preprocess=Preprocess(short_side=640, long_side=1066),
        model=Model(backbone=Backbone("resnet18", frozen_stages=1, batch_norm="frozen"), pyramid=Pyramid(channels=128)),
        augment=Augment(short_side_min=480, short_side_max=800),
        data=Data(keep_empty=False, workers=4),
        schedule=Schedule(optimizer="adamw", learning_rate=4e-4, weight_decay=0.05, decay="cosine", ema=0.9998),
    )


@recipe
def atss_lite0(name: str) -> Config:
    """A detector for the edge and for fine-tuning on a CPU: EfficientNet-Lite0, P3-P6 of 64 channels, 320 × 240."""
    return Config(
        recipe=name,
        preprocess=Preprocess(
            short_side=240,
            long_side=320,
            mean=(127.5, 127.5, 127.5),
            std=(127.5, 127.5, 127.5),
            pad_value=(127, 127, 127),
        ),
        model=Model(
            backbone=Backbone("efficientnet_lite0", frozen_stages=4, batch_norm="folded"),
            pyramid=Pyramid(channels=64, levels=4),
            head=Head(convolutions=2, group_norm_groups=16),
            anchors=Anchors(scale=4.0),
        ),
        augment=Augment(
            horizontal_flip=0.5,
            vertical_flip=0.5,
            transpose=0.5,
            short_side_min=240,
            short_side_max=240,
            crop=(256, 256),
            brightness=0.05,
            contrast=0.1,
            saturation=0.1,
        ),
        data=Data(workers=0),
        schedule=Schedule(
            steps=1000,
            batch=8,
            optimizer="adamw",
            learning_rate=1e-3,
            backbone_factor=0.3,
            betas=(0.9, 0.99),
            weight_decay=0.05,
            decay="cosine",
            warmup_steps=60,
            clip_norm=10.0,
            ema=0.995,
        ),
        run=Run(checkpoint_every=250, evaluate_every=500),
    )


@recipe
def atss_tiny(name: str) -> Config:
    """A detector for a first look on a CPU: a narrow ResNet-18, trained from scratch at 192 px."""
    return Config(
        recipe=name,
        preprocess=Preprocess(short_side=192, long_side=256),
        model=Model(
            backbone=Backbone("resnet18", weights="none", stem_channels=32),
            pyramid=Pyramid(channels=64),
            head=Head(convolutions=2, group_norm_groups=16),
        ),
        augment=Augment(
            short_side_min=154,
            short_side_max=240,
            crop=(192, 192),
            brightness=0.1,
            contrast=0.2,
            saturation=0.3,
        ),
        data=Data(workers=0),
        schedule=Schedule(
            steps=1200,
            optimizer="adamw",
            learning_rate=2e-3,
            weight_decay=0.05,
            betas=(0.9, 0.99),
            decay="cosine",
            warmup_steps=100,
            clip_norm=10.0,
            ema=0.995,
        ),
        run=Run(checkpoint_every=200, evaluate_every=400, evaluate_limit=200),
    )


@recipe
def atss_quick(name: str) -> Config:
    """The quickstart's detector: `atss_lite0` with 48 channels at 160 px; minutes on two cores, for drawn images."""
    base = atss_lite0()
    return replace(
        base,
        recipe=name,
        preprocess=replace(base.preprocess, short_side=160, long_side=224),
        model=replace(
            base.model,
            backbone=replace(base.model.backbone, frozen_stages=5),
            pyramid=Pyramid(channels=48, levels=4),
            head=Head(convolutions=2, group_norm_groups=12),
        ),
        augment=Augment(
            horizontal_flip=0.5,
            vertical_flip=0.5,
            transpose=0.5,
            short_side_min=160,
            short_side_max=160,
            crop=(160, 160),
        ),
        schedule=replace(base.schedule, steps=800, learning_rate=1.5e-3),
        # On a CPU bf16 slows depthwise convolutions down, and float32 trains alike on every processor.
        run=Run(precision="fp32", checkpoint_every=100, evaluate_every=400, evaluate_limit=100),
    )


# A new recipe is a function above and its line here.
RECIPES: dict[str, Recipe] = by_name(
    atss_r50_fpn_1x,
    atss_r18_fpn,
    atss_lite0,
    atss_tiny,
    atss_quick,
    *SYSTEMS.values(),
)
