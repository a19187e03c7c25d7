"""Draw the anchors that are assigned to each object, level by level.

    python -m train.show_assignment atss_tiny --annotations val.json --images val/ --out runs/assignment

A dot is the centre of a candidate anchor in its object's colour. The dot is filled where the anchor is positive for the
object, and hollow where the anchor's IoU is below the object's threshold, the mean + standard deviation of its
candidates' IoUs. Recipes with other assigners show their positives: compare atss_r50_fpn_1x with fcos_r50_fpn_1x or
retinanet_a1_r50_fpn_1x.
"""

from __future__ import annotations

if __name__ == "__main__":  # before the other imports, which take their time: Ctrl-C ends them in one line
    from runtime.interrupts import end_at_once

    end_at_once()

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
import torch

from runtime.bounds import Positive, argument
from runtime.coco import CocoDataset, load_coco
from runtime.command_names import program
from runtime.command_parser import CommandParser
from runtime.errors import UserError, run_main
from runtime.files import atomic_path
from runtime.images.limit import add_limit_argument, max_pixels
from runtime.images.preprocess import boxes_to_canvas, make_batch
from runtime.lettering import texts_for_matplotlib
from runtime.outputs import check_outputs

from .assign import build_assigner
from .assign.atss import candidate_anchors
from .config import Config
from .config.recipes import RECIPES
from .geometry.anchors import Level, grid_anchors, pyramid_levels
from .geometry.boxes import centers


class Scene(NamedTuple):
    """An image, its objects, and the anchors that are assigned to them."""

    canvas: np.ndarray  # uint8 [H, W, 3]
    boxes: np.ndarray  # float32 [G, 4] canvas px
    names: list[str]
    levels: list[Level]
    matched: np.ndarray  # int64 [N]: the box of each anchor, negative for none
    shown: list[
        np.ndarray
    ]  # of each box, the anchor indices to draw: ATSS's candidates, or another assigner's positives
    thresholds: list[float] | None  # of each box; None for other assigners than ATSS


def assign_image(dataset: CocoDataset, index: int, config: Config) -> Scene:
    """Assign the anchors of image `index` at deployment size with the recipe's assigner."""
    boxes, labels, crowd = dataset.annotations(index)
    batch = make_batch([dataset.load(index, config.preprocess)], config.preprocess)
    on_canvas = boxes_to_canvas(boxes[~crowd], batch.geometries[0])
    canvas_hw = (batch.images.shape[1], batch.images.shape[2])
    levels = pyramid_levels(canvas_hw, config.model.pyramid.levels, config.model.anchors)
    gt = torch.from_numpy(on_canvas).unsqueeze(0)
    mask = torch.ones(gt.shape[:2], dtype=torch.bool)
    rule = config.model.assignment
    matched = build_assigner(rule)(gt, mask, levels).matched[0].numpy()
    names = [dataset.classes[label] for label in labels[~crowd]]
    if rule.method != "atss":
        chosen = [np.flatnonzero(matched == g) for g in range(len(on_canvas))]
        return Scene(batch.images[0], on_canvas, names, levels, matched, chosen, None)
    found = candidate_anchors(gt, levels, rule.k, rule.k_counts, rule.center_in_box)
    chosen, thresholds = list(found.anchor[0].numpy()), found.threshold[0, :, 0].tolist()
    return Scene(batch.images[0], on_canvas, names, levels, matched, chosen, thresholds)


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
        last = first + level.anchors
        panel.imshow(scene.canvas)
        panel.set_axis_off()
        positives = 0
        for g, (x1, y1, x2, y2) in enumerate(scene.boxes):
            panel.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=colours[g], linewidth=1.5))
            index = scene.shown[g]
            index = index[(index >= first) & (index < last)]
            got = scene.matched[index] == g
            positives += int(got.sum())
            for filled in (False, True):
                xy = points[index[got == filled]]
                face = colours[g] if filled else "none"
                panel.scatter(xy[:, 0], xy[:, 1], s=24, facecolors=face, edgecolors=[colours[g]], linewidths=0.8)
        panel.set(xlim=(0, scene.canvas.shape[1]), ylim=(scene.canvas.shape[0], 0))  # anchors may lie outside the image
        panel.set_title(f"P{3 + scene.levels.index(level)}, stride {level.stride}: {positives} positive")
        first = last
    lines = []
    names = texts_for_matplotlib(scene.names)
    for g, (name, (x1, y1, x2, y2)) in enumerate(zip(names, scene.boxes, strict=True)):
        threshold = "" if scene.thresholds is None else f"threshold {scene.thresholds[g]:.2f}, "
        lines.append(f"{name} {x2 - x1:.0f}×{y2 - y1:.0f} px: {threshold}{(scene.matched == g).sum()} anchors")
    figure.suptitle("   ·   ".join(lines) or "no objects: every anchor is negative", fontsize=8, wrap=True)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=110)
    plt.close(figure)


def main() -> None:
    """The command: draw the assignment of some images and print the drawings' paths."""
    parser = CommandParser(prog=program("train.show_assignment"), description=__doc__.split("\n")[0])
    parser.add_argument("recipe", choices=sorted(RECIPES), help="recipe whose anchors, image size and assigner to show")
    parser.add_argument("--annotations", type=Path, required=True, help="COCO annotation file")
    parser.add_argument("--images", type=Path, required=True, help="folder of the images")
    parser.add_argument("--out", type=Path, required=True, help="folder for the drawings")
    parser.add_argument(
        "--count",
        type=argument(Positive),
        default=4,
        metavar="N",
        help="only the first N images with objects (%(default)s)",
    )
    add_limit_argument(parser)
    options = parser.parse_args()
    config = RECIPES[options.recipe]()
    dataset = load_coco(options.annotations, options.images)
    dataset = replace(dataset, max_pixels=max_pixels(options.max_megapixels))
    chosen = np.flatnonzero(np.diff(dataset.offsets))[: options.count].tolist()
    if not chosen:
        raise UserError(f"{options.annotations} has no image with an object: there is no assignment to show")
    paths = {index: options.out / f"assignment_{dataset.image_ids[index]}.png" for index in chosen}
    reads = [options.annotations, *map(dataset.path, range(len(dataset)))]
    check_outputs(reads, {"--out": paths.values()}, "choose another folder")
    for index, path in paths.items():
        draw_scene(assign_image(dataset, index, config), path)
        print(path)


if __name__ == "__main__":
    run_main(main)
