"""The dialects: how checkpoints of other implementations are recognised and renamed, and how those models compute.

A dialect is data: patterns that rename keys, and a configuration of our network. What the tensors show (depth, groups,
classes, deformable layers) is read from them; the rest is part of the dialect.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Literal

from torch import Tensor

from runtime.manifest import Preprocess, Thresholds

from ..config import Anchors, Assignment, Backbone, BackboneName, Head, Loss, Model, Pyramid, Regression, Scoring

DialectName = Literal[
    "mm_atss", "mm_retinanet", "mm_fcos", "authors_atss", "tv_retinanet", "tv_retinanet_v2", "tv_fcos"
]
State = dict[str, Tensor]

# None of these implementations shrinks large images before the resize.
_RGB = Preprocess(short_side=800, long_side=1333, divide_large=False)
# Caffe's: blue first, the mean subtracted, no division. Padding is 0 after the subtraction: the mean as a colour.
_BGR = Preprocess(
    short_side=800,
    long_side=1333,
    pad_value=(123, 116, 103),
    mean=(122.7717, 115.9465, 102.9801),
    std=(1.0, 1.0, 1.0),
    channel_order="bgr",
    divide_large=False,
)
_NINE = Anchors(scale=4.0, scales_per_octave=3, ratios=(0.5, 1.0, 2.0), outermost="ratios", center=0.0)
_NINE_WHOLE = replace(_NINE, whole_pixels=True)
_UNIT = Regression(delta_std=(1.0, 1.0, 1.0, 1.0))
_IOU = Assignment(method="max_iou", center_in_box=False)


@dataclass(frozen=True)
class Dialect:
    """How an implementation names and computes a detector; tensors complete the model's `backbone` and `head`."""

    name: DialectName
    title: str
    telltale: tuple[str, ...]  # keys that all its checkpoints have …
    without: tuple[str, ...]  # … and keys that none of them has
    keys: tuple[tuple[str, str], ...]  # pattern of a whole key, and its replacement
    ignored: str  # pattern of keys that aren't weights
    model: Model
    preprocess: Preprocess
    thresholds: Thresholds


_MM_KEYS = (
    (r"(backbone\.layer\d\.\d+\.conv2)\.conv_offset\.(weight|bias)", r"\1.offset.\2"),
    (r"(backbone\..+)", r"\1"),
    (r"neck\.lateral_convs\.(\d)\.conv\.(\w+)", r"pyramid.lateral.\1.\2"),
    (r"neck\.fpn_convs\.([0-2])\.conv\.(\w+)", r"pyramid.output.\1.\2"),
    (r"neck\.fpn_convs\.3\.conv\.(\w+)", r"pyramid.extra.0.\1"),
    (r"neck\.fpn_convs\.4\.conv\.(\w+)", r"pyramid.extra.1.\1"),
    (r"bbox_head\.cls_convs\.(\d)\.conv\.conv_offset\.(\w+)", r"head.class_tower.\1.convolution.offset.\2"),
    (r"bbox_head\.reg_convs\.(\d)\.conv\.conv_offset\.(\w+)", r"head.box_tower.\1.convolution.offset.\2"),
    (r"bbox_head\.cls_convs\.(\d)\.conv\.(\w+)", r"head.class_tower.\1.convolution.\2"),
    (r"bbox_head\.reg_convs\.(\d)\.conv\.(\w+)", r"head.box_tower.\1.convolution.\2"),
    (r"bbox_head\.cls_convs\.(\d)\.gn\.(\w+)", r"head.class_tower.\1.norm.\2"),
    (r"bbox_head\.reg_convs\.(\d)\.gn\.(\w+)", r"head.box_tower.\1.norm.\2"),
    (r"bbox_head\.(?:atss|conv|retina)_cls\.(\w+)", r"head.class_logits.\1"),
    (r"bbox_head\.(?:atss|conv|retina)_reg\.(\w+)", r"head.box_regression.\1"),
    (r"bbox_head\.(?:atss|conv)_centerness\.(\w+)", r"head.centerness.\1"),
    (r"bbox_head\.scales\.(\d)\.scale", r"head.scales.\1"),
)
_AUTHORS_KEYS = (
    (r"backbone\.body\.stem\.(.+)", r"backbone.\1"),
    (r"backbone\.body\.(layer\d\.\d+\.conv2)\.conv\.(\w+)", r"backbone.\1.\2"),
    (r"backbone\.body\.(layer.+)", r"backbone.\1"),
    (r"backbone\.fpn\.fpn_inner2\.(\w+)", r"pyramid.lateral.0.\1"),
    (r"backbone\.fpn\.fpn_inner3\.(\w+)", r"pyramid.lateral.1.\1"),
    (r"backbone\.fpn\.fpn_inner4\.(\w+)", r"pyramid.lateral.2.\1"),
    (r"backbone\.fpn\.fpn_layer2\.(\w+)", r"pyramid.output.0.\1"),
    (r"backbone\.fpn\.fpn_layer3\.(\w+)", r"pyramid.output.1.\1"),
    (r"backbone\.fpn\.fpn_layer4\.(\w+)", r"pyramid.output.2.\1"),
    (r"backbone\.fpn\.top_blocks\.p6\.(\w+)", r"pyramid.extra.0.\1"),
    (r"backbone\.fpn\.top_blocks\.p7\.(\w+)", r"pyramid.extra.1.\1"),
    # The towers are sequences of convolution, norm and ReLU, as in our network.
    (r"rpn\.head\.cls_tower\.(\d+)\.conv\.(\w+)", r"head.class_tower.\1.\2"),
    (r"rpn\.head\.bbox_tower\.(\d+)\.conv\.(\w+)", r"head.box_tower.\1.\2"),
    (r"rpn\.head\.cls_tower\.(\d+\..+)", r"head.class_tower.\1"),
    (r"rpn\.head\.bbox_tower\.(\d+\..+)", r"head.box_tower.\1"),
    (r"rpn\.head\.cls_logits\.(\w+)", r"head.class_logits.\1"),
    (r"rpn\.head\.bbox_pred\.(\w+)", r"head.box_regression.\1"),
    (r"rpn\.head\.centerness\.(\w+)", r"head.centerness.\1"),
    (r"rpn\.head\.scales\.(\d)\.scale", r"head.scales.\1"),
)
_TV_KEYS = (
    (r"backbone\.body\.(.+)", r"backbone.\1"),
    (r"backbone\.fpn\.inner_blocks\.(\d)\.(?:0\.)?(weight|bias)", r"pyramid.lateral.\1.\2"),
    (r"backbone\.fpn\.layer_blocks\.(\d)\.(?:0\.)?(weight|bias)", r"pyramid.output.\1.\2"),
    (r"backbone\.fpn\.extra_blocks\.p6\.(\w+)", r"pyramid.extra.0.\1"),
    (r"backbone\.fpn\.extra_blocks\.p7\.(\w+)", r"pyramid.extra.1.\1"),
    (r"head\.classification_head\.conv\.(\d)\.0\.(\w+)", r"head.class_tower.\1.convolution.\2"),
    (r"head\.regression_head\.conv\.(\d)\.0\.(\w+)", r"head.box_tower.\1.convolution.\2"),
    (r"head\.classification_head\.conv\.(\d)\.1\.(\w+)", r"head.class_tower.\1.norm.\2"),
    (r"head\.regression_head\.conv\.(\d)\.1\.(\w+)", r"head.box_tower.\1.norm.\2"),
    # FCOS, and RetinaNets saved before torchvision 0.14: plain sequences, as in our network.
    (r"head\.classification_head\.conv\.(\d+)\.(weight|bias)", r"head.class_tower.\1.\2"),
    (r"head\.regression_head\.conv\.(\d+)\.(weight|bias)", r"head.box_tower.\1.\2"),
    (r"head\.classification_head\.cls_logits\.(\w+)", r"head.class_logits.\1"),
    (r"head\.regression_head\.bbox_reg\.(\w+)", r"head.box_regression.\1"),
    (r"head\.regression_head\.bbox_ctrness\.(\w+)", r"head.centerness.\1"),
)

MM_ATSS = Dialect(
    name="mm_atss",
    title="mmdetection's ATSS",
    telltale=("bbox_head.atss_cls.weight",),
    without=(),
    keys=_MM_KEYS,
    ignored=r"data_preprocessor\..*",
    model=Model(
        pyramid=Pyramid(extra_relu=False),
        anchors=Anchors(center=0.0),
        scoring=Scoring(combine="product", rank_by="class"),
    ),
    preprocess=_RGB,
    thresholds=Thresholds(),
)
MM_RETINANET = Dialect(
    name="mm_retinanet",
    title="mmdetection's RetinaNet",
    telltale=("bbox_head.retina_cls.weight",),
    without=(),
    keys=_MM_KEYS,
    ignored=r"data_preprocessor\..*",
    model=Model(
        pyramid=Pyramid(extra_from="c5", extra_relu=False),
        head=Head(centerness="none", level_scales=False),
        anchors=_NINE,
        regression=_UNIT,
        assignment=_IOU,
        loss=Loss(box="smooth_l1", smooth_l1_beta=0.0, box_weight=1.0),
    ),
    preprocess=_RGB,
    thresholds=Thresholds(nms_iou=0.5),
)
MM_FCOS = Dialect(
    name="mm_fcos",
    title="mmdetection's FCOS (caffe, gn-head)",
    telltale=("bbox_head.conv_cls.weight", "bbox_head.conv_centerness.weight"),
    without=(),
    keys=_MM_KEYS,
    ignored=r"data_preprocessor\..*",
    model=Model(
        backbone=Backbone(bottleneck_stride="1x1"),
        head=Head(centerness="class"),
        regression=Regression(start="point", distance_unit="pixel"),
        assignment=Assignment(method="fcos"),
        loss=Loss(box="iou", box_weight=1.0),
        scoring=Scoring(combine="product", rank_by="class"),
    ),
    preprocess=_BGR,
    thresholds=Thresholds(nms_iou=0.5),
)
AUTHORS_ATSS = Dialect(
    name="authors_atss",
    title="the ATSS authors'",
    telltale=("rpn.head.cls_logits.weight", "rpn.head.centerness.weight", "backbone.body.stem.conv1.weight"),
    without=(),
    keys=_AUTHORS_KEYS,
    ignored=r"rpn\.anchor_generator\.cell_anchors\.\d",
    model=Model(backbone=Backbone(bottleneck_stride="1x1", norm_epsilon=0.0)),
    preprocess=_BGR,
    # With sides of x2 − x1 + 1 the centres of these anchors are the same as ours.
    thresholds=Thresholds(legacy_plus_one=True),
)
TV_RETINANET = Dialect(
    name="tv_retinanet",
    title="torchvision's retinanet_resnet50_fpn",
    telltale=("head.classification_head.cls_logits.weight",),
    without=("head.regression_head.bbox_ctrness.weight", "head.classification_head.conv.0.1.weight"),
    keys=_TV_KEYS,
    ignored=r"",
    model=Model(
        head=Head(centerness="none", level_scales=False),
        anchors=_NINE_WHOLE,
        regression=_UNIT,
        assignment=_IOU,
        loss=Loss(box="smooth_l1", smooth_l1_beta=0.0, box_weight=1.0),
    ),
    preprocess=_RGB,
    thresholds=Thresholds(nms_iou=0.5, detections=300),
)
TV_RETINANET_V2 = Dialect(
    name="tv_retinanet_v2",
    title="torchvision's retinanet_resnet50_fpn_v2",
    telltale=("head.classification_head.conv.0.1.weight",),
    without=("head.regression_head.bbox_ctrness.weight",),
    keys=_TV_KEYS,
    ignored=r"",
    model=Model(
        pyramid=Pyramid(extra_from="c5"),
        head=Head(centerness="none", level_scales=False),
        anchors=_NINE_WHOLE,
        regression=_UNIT,
        assignment=_IOU,
        loss=Loss(box="giou", box_weight=1.0),
    ),
    preprocess=_RGB,
    thresholds=Thresholds(nms_iou=0.5, detections=300),
)
TV_FCOS = Dialect(
    name="tv_fcos",
    title="torchvision's fcos_resnet50_fpn",
    telltale=("head.regression_head.bbox_ctrness.weight",),
    without=(),
    keys=_TV_KEYS,
    ignored=r"",
    model=Model(
        head=Head(level_scales=False),
        anchors=Anchors(center=0.0, whole_pixels=True),
        regression=Regression(start="point", distance="relu"),
        assignment=Assignment(method="fcos", center_sampling="radius"),
        loss=Loss(box_weight=1.0),
        scoring=Scoring(threshold_on="final"),
    ),
    preprocess=_RGB,
    thresholds=Thresholds(score=0.2),
)

DIALECTS = (MM_ATSS, MM_RETINANET, MM_FCOS, AUTHORS_ATSS, TV_RETINANET_V2, TV_FCOS, TV_RETINANET)


def recognise(state: State) -> Dialect | None:
    """The dialect of a state dict by its keys; None for an unknown one."""
    for dialect in DIALECTS:
        if all(k in state for k in dialect.telltale) and not any(k in state for k in dialect.without):
            return dialect
    return None


def rename(key: str, dialect: Dialect) -> str | None:
    """The name of a key in our network, "" for a key that isn't a weight, None for an unknown key."""
    for pattern, replacement in dialect.keys:
        if match := re.fullmatch(pattern, key):
            return match.expand(replacement)
    return "" if dialect.ignored and re.fullmatch(dialect.ignored, key) else None


def backbone_name(state: State) -> BackboneName | None:
    """The ResNet that tensors under our names belong to, by depth and groups; None for any other backbone."""
    depth = len({k.split(".")[2] for k in state if k.startswith("backbone.layer3.")})
    middle = state.get("backbone.layer1.0.conv2.weight")
    if middle is None or middle.ndim != 4:
        return None
    names: dict[tuple[int, int, int], BackboneName] = {
        (6, 64, 64): "resnet50",
        (23, 64, 64): "resnet101",
        (23, 256, 8): "resnext101_32x8d",
        (23, 256, 4): "resnext101_64x4d",
    }
    return names.get((depth, middle.shape[0], middle.shape[1]))
