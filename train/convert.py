"""Write a data set of another layout in COCO's format, and say what was left out.

    python -m train.convert yolo:data.yaml -o train.json
    python -m train.convert voc:VOC2007 --split val -o val.json
    python -m train.convert createml:_annotations.createml.json -o train.json

Layouts: yolo (Ultralytics' data.yaml, or a folder with one), voc (Pascal VOC), voc0 (the same with corners that count
from 0), createml, coco (checked and cleaned; boxes only). The images stay where they are.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from runtime.coco import CocoDataset, GroundTruth, load_coco_with_truth
from runtime.command_names import program
from runtime.errors import UserError, run_main
from runtime.files import atomic_write, require_writable
from runtime.outputs import check_outputs

from .layouts import COCO, annotation_files, as_coco, find_image_folder, parse_source, read_source


def convert(source: str, split: str = "train", images: Path | None = None) -> tuple[dict[str, Any], Path, list[str]]:
    """The COCO content of a data set, the folder that its file names are relative to, and what was left out.

    `split` counts where the source names none. `images` is that folder; by default it is the innermost folder of all
    images, and for COCO the folder that has them. Raises UserError where the data cannot be read.
    """
    given = parse_source(source)
    if given.layout == COCO:
        root = images if images is not None else find_image_folder(given.path)
        dataset, truth = load_coco_with_truth(given.path, root)
        return _cleaned(dataset, truth), root, list(dataset.problems)
    labeled = read_source(given, split)
    root = labeled.root if images is None else images
    if not labeled.root.is_relative_to(root.absolute()):
        raise UserError(f"--images-root {root}: the images lie in {labeled.root}; give that folder or one above it")
    return as_coco(labeled, root.absolute()), root, list(labeled.problems)


def _cleaned(dataset: CocoDataset, truth: GroundTruth) -> dict[str, Any]:
    """The usable annotations of a COCO file: ids, boxes and areas as they were, outlines left out."""
    images = [
        {"id": int(image_id), "file_name": name, "height": int(height), "width": int(width)}
        for image_id, name, (height, width) in zip(dataset.image_ids, dataset.file_names, dataset.sizes_hw, strict=True)
    ]
    annotations = [
        {
            "id": row + 1,
            "image_id": int(truth.image_ids[truth.images[row]]),
            "category_id": int(truth.category_ids[truth.categories[row]]),
            "bbox": truth.boxes[row].tolist(),
            "area": float(truth.areas[row]),
            "iscrowd": int(truth.crowd[row]),
        }
        for row in range(len(truth.boxes))
    ]
    categories = [{"id": number, "name": name} for number, name in dataset.categories.items()]
    return {"images": images, "annotations": annotations, "categories": categories}


def summary(content: dict[str, Any]) -> str:
    """How many images, objects and classes a COCO content has."""
    with_objects = {entry["image_id"] for entry in content["annotations"]}
    empty = len(content["images"]) - len(with_objects)
    return (
        f"{len(content['images'])} images ({empty} without objects), {len(content['annotations'])} objects, "
        f"{len(content['categories'])} classes"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """The command: write the COCO file, and print what it has and what was left out. Returns the exit code."""
    parser = argparse.ArgumentParser(
        prog=program("train.convert"),
        description=__doc__.partition("\n\n")[0],
        epilog=__doc__.rpartition("\n\n")[2],
    )
    parser.add_argument("source", metavar="SOURCE", help="yolo:data.yaml, voc:FOLDER, createml:FILE or coco:FILE")
    parser.add_argument("-o", "--out", type=Path, required=True, metavar="FILE", help="COCO file to write")
    parser.add_argument("--split", default="train", help="split to read (%(default)s); SOURCE#SPLIT says the same")
    parser.add_argument(
        "--images-root",
        type=Path,
        metavar="DIR",
        help="folder that the file names are relative to (default: the innermost that holds all images)",
    )
    options = parser.parse_args(arguments)
    if options.out.suffix.lower() != ".json":
        raise UserError(f"-o {options.out}: expected a name that ends in .json")
    check_outputs(annotation_files(parse_source(options.source)), {"-o": options.out})
    require_writable(options.out)
    content, root, problems = convert(options.source, options.split, options.images_root)
    atomic_write(options.out, json.dumps(content))
    for problem in problems:
        print(f"warning: {problem}")
    print(f"{options.out}: {summary(content)}")
    print(f"train with: --data.train-json {options.out} --data.train-images {root}")
    return 0


if __name__ == "__main__":
    run_main(main)
