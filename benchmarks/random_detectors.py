"""Detectors with random weights and COCO-like scores, so that postprocessing has its usual work.

A network's cost doesn't depend on its weights, but the cost of postprocessing depends on the scores: with fresh weights
nothing or everything is above the threshold. Here batch norms learn the statistics of the given images, and the last
layer's weights and bias are set so that CANDIDATES scores of an image are above the model's own threshold.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import torch
import torchvision.models.detection as zoo
from torch import Tensor, nn

from export.graph.checkpoint import checkpoint_to_graph
from export.graph.shapes import input_shapes
from runtime.files import atomic_path
from runtime.images import decode
from runtime.images.preprocess import resize
from train.build import build_detector
from train.checkpoint import Checkpoint, Classes, LoadedDetector, load_detector, save_checkpoint
from train.config.recipes import RECIPES

CLASSES = 80  # for torchvision's too, whose published models compute 91: the same for all
CANDIDATES = 1000  # scores of an image above the threshold; a COCO detector has some hundred to a few thousand
SPREAD = 1.0  # standard deviation of class logits


def photographs(folder: Path | None, count: int, height: int, width: int) -> np.ndarray:
    """Images uint8 [count, height, width, 3] from a folder, or soft blobs."""
    if folder is not None:
        paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
        images = [decode(path) for path in paths[:: max(1, len(paths) // count)][:count]]
    else:
        rng = np.random.default_rng(0)
        coarse = [rng.integers(0, 256, (12, 16, 3), dtype=np.uint8) for _ in range(count)]
        images = [cv2.resize(c, (width, height), interpolation=cv2.INTER_CUBIC) for c in coarse]
    return np.stack([resize(image, (height, width)) for image in images])


def our_model(folder: Path, recipe: str, images: np.ndarray, fixed: bool = False, device: str = "cpu") -> Path:
    """The exported file of a recipe's model in `folder`, made if it is missing. Its checkpoint lies beside it.

    The file takes every canvas, or with `fixed` only the images' canvas. The checkpoint is calibrated on `device`.
    """
    height, width = images.shape[1:3]
    checkpoint = folder / f"{recipe}_{height}x{width}.pt"
    path = checkpoint.with_suffix(".fixed.onnx" if fixed else ".onnx")
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        loaded = (
            load_detector(checkpoint) if checkpoint.exists() else our_checkpoint(recipe, images, checkpoint, device)
        )
        preprocess = loaded.config.preprocess
        if fixed:
            sides = {"short_side": min(height, width), "long_side": max(height, width)}
            preprocess = dataclasses.replace(preprocess, **sides)
            loaded = loaded._replace(config=dataclasses.replace(loaded.config, preprocess=preprocess))
        shapes = input_shapes(preprocess, 16, (height, width) if fixed else None)
        with atomic_path(path) as temporary:
            temporary.write_bytes(checkpoint_to_graph(loaded, shapes))
    return path


def our_checkpoint(recipe: str, images: np.ndarray, path: Path, device: str = "cpu") -> LoadedDetector:
    """A checkpoint of a recipe's model, calibrated on images uint8 [B, H, W, 3], on a device of torch."""
    torch.manual_seed(0)
    settings = RECIPES[recipe]()
    backbone = dataclasses.replace(settings.model.backbone, weights="none", batch_norm="train", frozen_stages=0)
    settings = dataclasses.replace(settings, model=dataclasses.replace(settings.model, backbone=backbone))
    detector = build_detector(settings.model, CLASSES, settings.preprocess).to(device)
    batch = torch.from_numpy(images).to(device)
    learn_statistics(detector, lambda: detector(batch))
    layer = detector.head.class_logits
    with torch.inference_mode():
        logits = torch.cat([level.flatten(1) for level in detector(batch).class_logits], dim=1)
    set_scores(layer, logits, threshold=settings.thresholds.score)
    names = Classes(tuple(f"class {n}" for n in range(CLASSES)), tuple(range(1, CLASSES + 1)))
    save_checkpoint(path, Checkpoint(settings, names, 1, detector.cpu().state_dict(), None, {}, {}, None, -1.0))
    return load_detector(path)


def torchvision_model(kind: str, images: np.ndarray, device: str = "cpu") -> nn.Module:
    """`fcos_resnet50_fpn` or `retinanet_resnet50_fpn`, calibrated on the same images, its resize left out.

    It lies on `device`.
    """
    torch.manual_seed(0)
    height, width = images.shape[1:3]
    build = {"fcos": zoo.fcos_resnet50_fpn, "retinanet": zoo.retinanet_resnet50_fpn}[kind]
    # The images have their size already: what is measured begins behind the resize, as with ours.
    model = build(
        weights=None,
        weights_backbone=None,
        num_classes=CLASSES,
        min_size=min(height, width),
        max_size=max(height, width),
    )
    tensors = [torch.from_numpy(image).to(device).permute(2, 0, 1).float() / 255 for image in images]
    found: list[Tensor] = []

    def look(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        found.append(output.flatten(1))

    model.to(device).eval()
    learn_statistics(model, lambda: model(tensors))
    layer = model.head.classification_head.cls_logits
    handle = layer.register_forward_hook(look)
    with torch.inference_mode():
        model(tensors)
    handle.remove()
    # FCOS's threshold is on √(class · centerness), and its untrained centerness is a half.
    threshold = model.score_thresh**2 / 0.5 if kind == "fcos" else model.score_thresh
    set_scores(layer, torch.cat(found, dim=1), threshold)
    return model


def learn_statistics(model: nn.Module, run: Callable[[], object]) -> None:
    """Set the batch norms' mean and variance to those of their inputs."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.train()
        norm.momentum = None  # the mean of all that was seen
        norm.reset_running_stats()
    with torch.inference_mode():
        run()
    for norm in norms:
        norm.eval()


def set_scores(layer: nn.Conv2d, logits: Tensor, threshold: float) -> None:
    """Scale and shift the logits [B, n] of `layer` so that CANDIDATES of each image exceed the threshold."""
    bias = layer.bias
    assert bias is not None
    with torch.no_grad():
        spread, mean = float(logits.std()), float(logits.mean())
        layer.weight *= SPREAD / spread
        unit = (logits - mean) / spread * SPREAD
        cut = float(unit.flatten().kthvalue(unit.numel() - CANDIDATES * len(unit)).values)
        bias[:] = (bias - mean) / spread * SPREAD + float(np.log(threshold / (1 - threshold))) - cut
