"""Write a data set of another layout in COCO's format, and say what was left out.

    python -m train.convert yolo:data.yaml -o train.json
    python -m train.convert voc:VOC2007 --split val -o val.json
    python -m train.convert createml:_annotations.createml.json -o train.json

Layouts: yolo (Ultralytics' data.yaml, or a folder with one), voc (Pascal VOC), voc0 (the same with corners that count
from 0), createml, coco (checked and cleaned; boxes only). The images stay where they are.
"""

from __future__ import annotations

if __name__ == "__main__":  # before the other imports, which take their time: Ctrl-C ends them in one line
    from runtime.interrupts import end_at_once

    end_at_once()

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from runtime.coco import CocoDataset
from runtime.coco.dataset import add_outside_argument, parse_dataset
from runtime.coco.format import Annotations, read_coco_json
from runtime.command_names import program
from runtime.command_parser import CommandParser
from runtime.errors import UserError, run_main
from runtime.files import atomic_write, require_writable
from runtime.outputs import check_outputs

from .layouts import COCO, annotation_files, as_coco, find_image_folder, parse_source, read_source


def convert(
    source: str, split: str = "train", images: Path | None = None, allow_outside: bool = False
) -> tuple[dict[str, Any], Path, list[str]]:
    """The COCO content of a data set, the folder that its file names are relative to, and what was left out.

    `split` counts where the source names none. `images` is that folder; by default it is the innermost folder of all
    images, and for COCO the folder that has them; names that lead out of it need `allow_outside` there. Raises
    UserError where the data cannot be read.
    """
    given = parse_source(source)
    if given.layout == COCO:
        root = images if images is not None else find_image_folder(given.path)
        content = read_coco_json(given.path)
        dataset = parse_dataset(content, given.path, root, allow_outside)
        annotations: Annotations = content["annotations"]
        has_objects = bool(len(annotations.ids) or annotations.others)
        clean = require_something(cleaned(content, dataset), source, dataset.problems, has_objects)
        return clean, root, list(dataset.problems)
    labeled = read_source(given, split)
    root = labeled.root if images is None else images
    if not labeled.root.is_relative_to(root.absolute()):
        raise UserError(f"--images-root {root}: the images lie in {labeled.root}; give that folder or one above it")
    has_objects = any(", dropped: " in line for line in labeled.problems)
    content = require_something(as_coco(labeled, root.absolute()), source, labeled.problems, has_objects)
    return content, root, list(labeled.problems)


def require_something(
    content: dict[str, Any], source: str, problems: Sequence[str], has_objects: bool
) -> dict[str, Any]:
    """The content of a COCO file. Raises UserError where it has no class, or no object though the source has some.

    A set whose images never had an object is good as negatives.
    """
    if not content["categories"]:
        raise UserError(f"{source}: no object of a class in it; there is nothing to convert" + _reasons(problems))
    if not content["annotations"] and has_objects:
        raise UserError(f"{source}: no object is left{_reasons(problems)}")
    return content


def _reasons(problems: Sequence[str]) -> str:
    return f" ({'; '.join(problems)})" if problems else ""


def cleaned(content: dict[str, Any], dataset: CocoDataset) -> dict[str, Any]:
    """A COCO file in one form: ids, boxes, areas and marks as they were, sizes and names as they are read.

    Outlines are left out, and annotations of unknown images or categories.
    """
    annotations: Annotations = content["annotations"]
    image_ids = _by_id(dataset.image_ids.tolist(), dataset.written_image_ids)
    category_ids = _by_id(dataset.category_ids, dataset.written_category_ids)
    images = []
    for index, (entry, name) in enumerate(zip(content["images"], dataset.file_names, strict=True)):
        height, width = dataset.size_hw(index)
        # A size that neither the entry nor the file says is left out here too.
        size = {"height": height, "width": width} if entry.get("width") or height * width > 1 else {}
        images.append({"id": image_ids[entry["id"]], "file_name": name, **size})
    entries: list[dict[str, Any]] = []
    for row in np.flatnonzero(annotations.known(dataset.image_ids, dataset.category_ids)).tolist():
        box, area = annotations.boxes[row].tolist(), float(annotations.areas[row])
        entries.append(
            {
                "id": len(entries) + 1,
                "image_id": image_ids[int(annotations.image_ids[row])],
                "category_id": category_ids[int(annotations.category_ids[row])],
                "bbox": box,
                "area": max(box[2], 0.0) * max(box[3], 0.0) if math.isnan(area) else area,
                "iscrowd": int(annotations.crowd[row]),
                **({"ignore": 1} if annotations.ignore[row] else {}),
            }
        )
    categories = [{"id": category_ids[number], "name": name} for number, name in dataset.categories.items()]
    return {"images": images, "annotations": entries, "categories": categories}


def _by_id(ids: Sequence[int], written: Sequence[Any] | None) -> dict[int, Any]:
    """The ids as the file has them, by the ids that are used inside."""
    return dict(zip(ids, ids if written is None else written, strict=True))


def summary(content: dict[str, Any]) -> str:
    """How many images, objects and classes a COCO content has."""
    with_objects = {entry["image_id"] for entry in content["annotations"] if "ignore" not in entry}
    empty = len(content["images"]) - len(with_objects)
    regions = sum("ignore" in entry for entry in content["annotations"])
    more = f" and {regions} regions to ignore" if regions else ""
    return (
        f"{len(content['images'])} images ({empty} without objects), {len(content['annotations']) - regions} objects"
        f"{more}, {len(content['categories'])} classes"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """The command: write the COCO file, and print what it has and what was left out. Returns the exit code."""
    parser = CommandParser(
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
    add_outside_argument(parser)
    options = parser.parse_args(arguments)
    if options.out.suffix.lower() != ".json":
        raise UserError(f"-o {options.out}: expected a name that ends in .json")
    check_outputs(annotation_files(parse_source(options.source)), {"-o": options.out})
    require_writable(options.out)
    content, root, problems = convert(options.source, options.split, options.images_root, options.allow_outside)
    atomic_write(options.out, json.dumps(content))
    for problem in problems:
        print(f"warning: {problem}")
    print(f"{options.out}: {summary(content)}")
    print(f"train with: --data.train-json {options.out} --data.train-images {root}")
    return 0


if __name__ == "__main__":
    run_main(main)
