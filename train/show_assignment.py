"""Draw which anchors each object got, level by level: the paper's idea made visible.

    python -m train.show_assignment atss_tiny --annotations val.json --images val/ --out runs/assignment

A dot is the centre of a candidate anchor, in its object's colour: filled where the anchor is positive for that object,
hollow where its IoU lies below the object's own threshold, mean + standard deviation of its candidates' IoUs.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
import torch

from runtime.coco import CocoDataset, load_coco
from runtime.errors import UserError, run_main
from runtime.files import atomic_path
from runtime.preprocess import boxes_to_canvas, make_batch

from .anchors import Level, grid_anchors, pyramid_levels
from .assign import atss
from .assign.atss import Candidates, candidates
from .boxes import centers
from .config import Config
from .recipes import RECIPES


class Scene(NamedTuple):
    """A picture and what ATSS makes of it."""

    canvas: np.ndarray  # uint8 [H, W, 3]
    boxes: np.ndarray  # float32 [G, 4] canvas px
    names: list[str]
    levels: list[Level]
    found: Candidates  # of the picture, with a leading dimension of 1
    matched: np.ndarray  # int64 [N]: the box of each anchor, −1 for a negative


def assign_picture(dataset: CocoDataset, index: int, config: Config) -> Scene:
    """Assign the anchors of one picture at deployment size."""
    boxes, labels, crowd = dataset.annotations(index)
    batch = make_batch([dataset.image(index)], config.preprocess)
    on_canvas = boxes_to_canvas(boxes[~crowd], batch.geometries[0])
    canvas_hw = (batch.images.shape[1], batch.images.shape[2])
    levels = pyramid_levels(canvas_hw, config.model.pyramid.levels, config.model.anchors)
    gt = torch.from_numpy(on_canvas).unsqueeze(0)
    mask = torch.ones(gt.shape[:2], dtype=torch.bool)
    k = config.model.assignment.k
    matched = atss(gt, mask, levels, k).matched[0].numpy()
    names = [dataset.classes[label] for label in labels[~crowd]]
    return Scene(batch.images[0], on_canvas, names, levels, candidates(gt, levels, k), matched)


def draw_scene(scene: Scene, path: Path) -> None:
    """Write a figure with one panel per pyramid level that has candidates."""
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.patches import Rectangle

    points = centers(grid_anchors(scene.levels)).numpy()
    colours = plt.get_cmap("tab20")(np.arange(len(scene.boxes)) % 20)
    figure, axes = plt.subplots(
        1, len(scene.levels), figsize=(3.6 * len(scene.levels), 4.2), layout="constrained", squeeze=False
    )
    first = 0
    for panel, level in zip(axes[0], scene.levels, strict=True):
        last = first + level.cells
        panel.imshow(scene.canvas)
        panel.set_axis_off()
        positives = 0
        for g, (x1, y1, x2, y2) in enumerate(scene.boxes):
            panel.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=colours[g], linewidth=1.5))
            index = scene.found.anchor[0, g].numpy()
            index = index[(index >= first) & (index < last)]
            got = scene.matched[index] == g
            positives += int(got.sum())
            for filled in (False, True):
                xy = points[index[got == filled]]
                face = colours[g] if filled else "none"
                panel.scatter(xy[:, 0], xy[:, 1], s=24, facecolors=face, edgecolors=[colours[g]], linewidths=0.8)
        panel.set(xlim=(0, scene.canvas.shape[1]), ylim=(scene.canvas.shape[0], 0))  # anchors may lie beyond the edge
        panel.set_title(f"P{3 + scene.levels.index(level)}, stride {level.stride}: {positives} positive")
        first = last
    got = [int((scene.matched == g).sum()) for g in range(len(scene.boxes))]
    lines = [
        f"{name} {box[2] - box[0]:.0f}×{box[3] - box[1]:.0f} px: threshold {threshold:.2f}, {count} anchors"
        for name, box, threshold, count in zip(
            scene.names, scene.boxes, scene.found.threshold[0, :, 0].tolist(), got, strict=True
        )
    ]
    figure.suptitle("   ·   ".join(lines) or "no objects: every anchor is negative", fontsize=8, wrap=True)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=110)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m train.show_assignment", description=__doc__.split("\n")[0])
    parser.add_argument("recipe", choices=sorted(RECIPES), help="whose anchors, image size and k")
    parser.add_argument("--annotations", type=Path, required=True, help="COCO json")
    parser.add_argument("--images", type=Path, required=True, help="folder of the pictures")
    parser.add_argument("--out", type=Path, required=True, help="folder for the drawings")
    parser.add_argument("--count", type=int, default=4, help="the first so many pictures with objects (default 4)")
    options = parser.parse_args()
    config = RECIPES[options.recipe]()
    dataset = load_coco(options.annotations, options.images)
    chosen = np.flatnonzero(np.diff(dataset.offsets))[: options.count].tolist()
    if not chosen:
        raise UserError(f"{options.annotations} has no picture with an object: there is no assignment to show")
    for index in chosen:
        path = options.out / f"assignment_{dataset.image_ids[index]}.png"
        draw_scene(assign_picture(dataset, index, config), path)
        print(path)


if __name__ == "__main__":
    run_main(main)
