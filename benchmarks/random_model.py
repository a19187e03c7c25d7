"""Exports a recipe with random weights for measuring speed: it finds about as many objects as a trained model.

    python benchmarks/random_model.py atss_r50_fpn_1x --sides 320 416 --annotations val.json -o runs/r50.onnx

The classifier's weights are scaled until about one score in twenty passes the threshold, so that NMS, its rerun and the
scoring have something to do. Its AP is zero.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import tempfile
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from export.graph.checkpoint import checkpoint_to_graph
from export.graph.shapes import input_shapes
from runtime.coco import load_coco
from runtime.files import atomic_write
from train.build import build_detector
from train.checkpoint import Checkpoint, Classes, load_detector, save_checkpoint
from train.config.recipes import RECIPES

LOGIT_STD = 0.03  # × √(256 channels × 9 taps × ½) ≈ 1: with a prior of 0.01, a score of 0.05 is 1.7 σ above the mean


def main() -> None:
    """Write the checkpoint and export it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", choices=RECIPES)
    parser.add_argument("--sides", type=int, nargs=2, metavar=("SHORT", "LONG"), help="default: the recipe's")
    parser.add_argument("--annotations", type=Path, required=True, help="COCO json with the classes")
    parser.add_argument("--batch-max", type=int, default=16)
    parser.add_argument("-o", "--output", type=Path, required=True)
    options = parser.parse_args()
    torch.manual_seed(0)
    config = RECIPES[options.recipe]()
    config = dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, backbone=dataclasses.replace(config.model.backbone, weights="none")),
    )
    if options.sides:
        short_side, long_side = options.sides
        preprocess = dataclasses.replace(config.preprocess, short_side=short_side, long_side=long_side)
        config = dataclasses.replace(config, preprocess=preprocess)
    dataset = load_coco(options.annotations, ".")
    classes = Classes(dataset.classes, dataset.category_ids)
    detector = build_detector(config.model, len(classes.names), config.preprocess)
    torch.nn.init.normal_(detector.head.class_logits.weight, std=LOGIT_STD)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "random.pt"
        save_checkpoint(path, Checkpoint(config, classes, 1, detector.state_dict(), None, {}, {}, None, -1.0))
        loaded = load_detector(path)
    atomic_write(options.output, checkpoint_to_graph(loaded, input_shapes(config.preprocess, options.batch_max)))
    print(f"{options.output}: {options.recipe}, sides {config.preprocess.short_side}/{config.preprocess.long_side}")


if __name__ == "__main__":
    main()
