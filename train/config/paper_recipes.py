"""The systems that the ATSS paper compares (arXiv 1912.02424), as recipes; AP are its authors' on COCO minival.

All of them have ResNet-50, P3-P7, two towers of four convolutions and the 1x schedule of `atss_r50_fpn_1x`; each
function gives the parts that differ: anchors, positives, regression, losses, head.
"""

from __future__ import annotations

from dataclasses import replace

from runtime.manifest import Preprocess

from ..model.backbones import BackboneName
from .naming import Recipe, by_name, recipe
from .schema import (
    Anchors,
    Assignment,
    Augment,
    Backbone,
    Config,
    Data,
    Head,
    Loss,
    Model,
    Pyramid,
    Regression,
    Schedule,
)

_NINE = Anchors(scale=4.0, scales_per_octave=3, ratios=(0.5, 1.0, 2.0))  # RetinaNet's, arXiv 1708.02002
_IOU = Assignment(method="max_iou", center_in_box=False)
_IOU_IN_BOX = Assignment(method="max_iou", center_in_box=True)
_PLAIN_HEAD = Head(group_norm_groups=0, centerness="none", level_scales=False)
_GN_HEAD = Head(centerness="none", level_scales=False)
_SMOOTH_L1 = Loss(box="smooth_l1", box_weight=1.0)


def system(
    name: str,
    *,
    anchors: Anchors | None = None,
    assignment: Assignment | None = None,
    regression: Regression | None = None,
    loss: Loss | None = None,
    head: Head | None = None,
    pyramid: Pyramid | None = None,
) -> Config:
    """A detector on ResNet-50 at the paper's image size and 1x schedule; parts that aren't given are ATSS's."""
    return Config(
        recipe=name,
        preprocess=Preprocess(short_side=800, long_side=1333),
        model=Model(
            backbone=Backbone("resnet50", frozen_stages=2, batch_norm="frozen"),
            pyramid=pyramid or Pyramid(),
            head=head or Head(),
            anchors=anchors or Anchors(),
            regression=regression or Regression(),
            assignment=assignment or Assignment(),
            loss=loss or Loss(),
        ),
        data=Data(keep_empty=False, workers=4),
    )


@recipe
def retinanet_r50_fpn_1x(name: str) -> Config:
    """RetinaNet: 9 anchors, IoU 0.5 / 0.4, deltas, smooth L1 (36.3 AP)."""
    return system(name, anchors=_NINE, assignment=_IOU, loss=_SMOOTH_L1, head=_PLAIN_HEAD)


@recipe
def retinanet_a9_improved_r50_fpn_1x(name: str) -> Config:
    """RetinaNet with 9 anchors and all improvements: GroupNorm, GIoU, centre in box, centerness, scales (38.4 AP)."""
    return system(name, anchors=_NINE, assignment=_IOU_IN_BOX)


@recipe
def retinanet_a9_atss_r50_fpn_1x(name: str) -> Config:
    """RetinaNet with 9 anchors, all improvements and ATSS (39.2 AP)."""
    return system(name, anchors=_NINE)


@recipe
def retinanet_a1_r50_fpn_1x(name: str) -> Config:
    """RetinaNet with one square anchor (32.5 AP): where the paper's table of inconsistencies begins."""
    return system(name, assignment=_IOU, loss=_SMOOTH_L1, head=_PLAIN_HEAD)


@recipe
def retinanet_a1_gn_r50_fpn_1x(name: str) -> Config:
    """RetinaNet with one anchor + GroupNorm."""
    return system(name, assignment=_IOU, loss=_SMOOTH_L1, head=_GN_HEAD)


@recipe
def retinanet_a1_giou_r50_fpn_1x(name: str) -> Config:
    """RetinaNet with one anchor + GroupNorm + GIoU."""
    return system(name, assignment=_IOU, head=_GN_HEAD)


@recipe
def retinanet_a1_inbox_r50_fpn_1x(name: str) -> Config:
    """RetinaNet with one anchor + GroupNorm + GIoU + centre in the box."""
    return system(name, assignment=_IOU_IN_BOX, head=_GN_HEAD)


@recipe
def retinanet_a1_centerness_r50_fpn_1x(name: str) -> Config:
    """RetinaNet with one anchor + GroupNorm + GIoU + centre in the box + centerness."""
    head = Head(level_scales=False)
    return system(name, assignment=_IOU_IN_BOX, head=head)


@recipe
def retinanet_a1_improved_r50_fpn_1x(name: str) -> Config:
    """RetinaNet with one anchor and all improvements, the last one the scale per level: IoU × box (37.0 AP)."""
    return system(name, assignment=_IOU_IN_BOX)


@recipe
def spatial_scale_box_r50_fpn_1x(name: str) -> Config:
    """The same detector with FCOS's choice of positives: spatial and scale constraint × box (37.8 AP)."""
    return system(name, assignment=Assignment(method="fcos"))


@recipe
def fcos_r50_fpn_1x(name: str) -> Config:
    """FCOS: spatial and scale constraint × point (37.8 AP)."""
    return system(name, assignment=Assignment(method="fcos"), regression=Regression(start="point"))


@recipe
def iou_point_r50_fpn_1x(name: str) -> Config:
    """FCOS with RetinaNet's choice of positives: IoU with an 8-stride box per point × point (36.9 AP)."""
    return system(name, assignment=_IOU_IN_BOX, regression=Regression(start="point"))


@recipe
def fcos_center_sampling_r50_fpn_1x(name: str) -> Config:
    """FCOS + center sampling, the "lite" version of ATSS: k nearest per level, then scale ranges (38.6 AP)."""
    rule = Assignment(method="fcos", center_sampling="nearest")
    return system(name, assignment=rule, regression=Regression(start="point"))


@recipe
def fcos_center_radius_r50_fpn_1x(name: str) -> Config:
    """FCOS + center sampling as FCOS itself has it: points within 1.5 strides of the box's centre."""
    rule = Assignment(method="fcos", center_sampling="radius", radius=1.5)
    return system(name, assignment=rule, regression=Regression(start="point"))


@recipe
def fcos_atss_r50_fpn_1x(name: str) -> Config:
    """ATSS on FCOS: an 8-stride box per point for the choice, distances from the point (39.2 AP)."""
    return system(name, regression=Regression(start="point"))


@recipe
def atss_s3_r50_fpn_1x(name: str) -> Config:
    """ATSS with 3 scales per octave (39.2 – 39.3 AP: more anchors are useless)."""
    return system(name, anchors=Anchors(scales_per_octave=3))


@recipe
def atss_r3_r50_fpn_1x(name: str) -> Config:
    """ATSS with 3 ratios (39.2 – 39.3 AP)."""
    return system(name, anchors=Anchors(ratios=(0.5, 1.0, 2.0)))


@recipe
def atss_s3_r3_r50_fpn_1x(name: str) -> Config:
    """ATSS with 3 scales per octave and 3 ratios (39.2 – 39.3 AP)."""
    return system(name, anchors=Anchors(scales_per_octave=3, ratios=(0.5, 1.0, 2.0)))


@recipe
def topk_r50_fpn_1x(name: str) -> Config:
    """A control that the paper doesn't have: ATSS with the 9 candidates of highest IoU in place of the threshold."""
    return system(name, assignment=Assignment(method="topk"))


def larger(name: str, backbone: BackboneName, deformable_stages: tuple[int, ...] = (), double: bool = True) -> Config:
    """ATSS on another backbone; `double` is the 2x schedule with its range of image sizes."""
    base = system(name, head=Head(deformable=bool(deformable_stages)))
    model = replace(
        base.model, backbone=replace(base.model.backbone, name=backbone, deformable_stages=deformable_stages)
    )
    if not double:
        return replace(base, model=model)
    return replace(
        base,
        model=model,
        augment=Augment(short_side_min=640, short_side_max=800),
        schedule=Schedule(steps=180_000, milestones=(120_000, 160_000)),
    )


@recipe
def atss_dcn_r50_fpn_1x(name: str) -> Config:
    """ATSS with DCNv2 in c3-c5 and the towers' last layer (43.0 AP)."""
    return larger(name, "resnet50", (3, 4, 5), double=False)


@recipe
def atss_r101_fpn_2x(name: str) -> Config:
    """ATSS on ResNet-101, 2x (43.6 AP)."""
    return larger(name, "resnet101")


@recipe
def atss_dcn_r101_fpn_2x(name: str) -> Config:
    """ATSS on ResNet-101 with DCNv2, 2x (46.3 AP)."""
    return larger(name, "resnet101", (3, 4, 5))


@recipe
def atss_x101_32x8d_fpn_2x(name: str) -> Config:
    """ATSS on ResNeXt-101-32x8d, 2x (45.1 AP)."""
    return larger(name, "resnext101_32x8d")


@recipe
def atss_dcn_x101_32x8d_fpn_2x(name: str) -> Config:
    """ATSS on ResNeXt-101-32x8d with DCNv2 in c4-c5, 2x (47.7 AP)."""
    return larger(name, "resnext101_32x8d", (4, 5))


@recipe
def atss_x101_64x4d_fpn_2x(name: str) -> Config:
    """ATSS on ResNeXt-101-64x4d, 2x (45.6 AP)."""
    return larger(name, "resnext101_64x4d")


@recipe
def atss_dcn_x101_64x4d_fpn_2x(name: str) -> Config:
    """ATSS on ResNeXt-101-64x4d with DCNv2 in c4-c5, 2x (47.7 AP; 50.7 with multi-scale testing, test-dev)."""
    return larger(name, "resnext101_64x4d", (4, 5))


SYSTEMS: dict[str, Recipe] = by_name(
    retinanet_r50_fpn_1x,
    retinanet_a9_improved_r50_fpn_1x,
    retinanet_a9_atss_r50_fpn_1x,
    retinanet_a1_r50_fpn_1x,
    retinanet_a1_gn_r50_fpn_1x,
    retinanet_a1_giou_r50_fpn_1x,
    retinanet_a1_inbox_r50_fpn_1x,
    retinanet_a1_centerness_r50_fpn_1x,
    retinanet_a1_improved_r50_fpn_1x,
    spatial_scale_box_r50_fpn_1x,
    fcos_r50_fpn_1x,
    iou_point_r50_fpn_1x,
    fcos_center_sampling_r50_fpn_1x,
    fcos_center_radius_r50_fpn_1x,
    fcos_atss_r50_fpn_1x,
    atss_s3_r50_fpn_1x,
    atss_r3_r50_fpn_1x,
    atss_s3_r3_r50_fpn_1x,
    topk_r50_fpn_1x,
    atss_dcn_r50_fpn_1x,
    atss_r101_fpn_2x,
    atss_dcn_r101_fpn_2x,
    atss_x101_32x8d_fpn_2x,
    atss_dcn_x101_32x8d_fpn_2x,
    atss_x101_64x4d_fpn_2x,
    atss_dcn_x101_64x4d_fpn_2x,
)
