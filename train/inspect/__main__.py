"""Say what is in a data set before training on it.

    python -m train.inspect train.json --images train/ --val val.json --val-images val/ --recipe atss_lite0
    python -m train.inspect yolo:data.yaml --recipe atss_tiny -o sheet.jpg

DATA is a COCO file, or yolo:data.yaml, voc:FOLDER, createml:FILE (as in train.convert), whose validation split is
compared too. The exit code is 1 where something has to be mended before training, such as images that can't be read.
"""

from __future__ import annotations

if __name__ == "__main__":  # before the other imports, which take their time: Ctrl-C ends them in one line
    from runtime.interrupts import end_at_once

    end_at_once()

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from runtime.bounds import Count, Side, argument
from runtime.coco.dataset import add_outside_argument
from runtime.command_names import program
from runtime.command_parser import CommandParser
from runtime.errors import UserError, run_main
from runtime.files import atomic_write, require_writable
from runtime.images.limit import add_limit_argument, max_pixels
from runtime.outputs import check_outputs

from ..api import starting_config
from ..config import Config
from ..layouts import Source, annotation_files, parse_source
from .opened import Opened, open_data, open_other_split
from .report import inspect_data, report_as_json, report_as_text
from .sheet import contact_sheet

FAULTY = 1  # the exit code of a data set with faults


def main(arguments: Sequence[str] | None = None) -> int:
    """The command: print the report, and write the sheet and the JSON that are asked for. Returns the exit code."""
    options = _parser().parse_args(arguments)
    config = None if options.recipe is None else _config(options)
    source = parse_source(options.data)
    _check_outputs(options, source)
    opened = open_data(source, options.split, options.images, options.allow_outside)
    opened = opened._replace(dataset=replace(opened.dataset, max_pixels=max_pixels(options.max_megapixels)))
    val = _validation_set(options) or (open_other_split(source, "val") if options.split == "train" else None)
    datasets = [one.dataset for one in (opened, val) if one is not None]
    images = (dataset.path(index) for dataset in datasets for index in range(len(dataset)))
    check_outputs(images, {"-o": options.out, "--json": options.json})
    report = inspect_data(opened, val, config, decode=options.decode, assign=options.assign)
    print(report_as_text(report))
    if options.json is not None:
        atomic_write(options.json, json.dumps(report_as_json(report), indent=1) + "\n")
    if options.out is not None:
        atomic_write(options.out, contact_sheet(opened.dataset))
        print(f"sheet: {options.out}")
    return FAULTY if report.faults else 0


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(prog=program("train.inspect"), description=__doc__.partition("\n\n")[0])
    parser.add_argument("data", metavar="DATA", help="COCO file, yolo:data.yaml, voc:FOLDER or createml:FILE")
    parser.add_argument("--images", type=Path, help="image folder of a COCO file (default: looked for beside it)")
    parser.add_argument("--split", default="train", help="split of another layout than COCO (%(default)s)")
    parser.add_argument("--val", metavar="DATA", help="validation set to look for the same images in")
    parser.add_argument("--val-images", type=Path, help="image folder of a COCO file given as --val")
    parser.add_argument("--recipe", help="recipe or checkpoint whose anchors to assign to the objects")
    parser.add_argument(
        "--short-side", type=argument(Side), help="px: resize to this shorter side in the recipe's place"
    )
    parser.add_argument("--long-side", type=argument(Side), help="px: resize to at most this longer side")
    parser.add_argument(
        "--decode",
        type=argument(Count),
        default=200,
        metavar="N",
        help="images to decode, evenly spread; 0: all (%(default)s)",
    )
    parser.add_argument(
        "--assign",
        type=argument(Count),
        default=2000,
        metavar="N",
        help="images whose anchors to assign, evenly spread; 0: all (%(default)s)",
    )
    add_outside_argument(parser)
    add_limit_argument(parser)
    parser.add_argument("-o", "--out", type=Path, metavar="FILE", help="write a page of images with their boxes (JPEG)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the report to this file")
    return parser


def _validation_set(options: argparse.Namespace) -> Opened | None:
    if options.val is None:
        if options.val_images is not None:
            raise UserError("--val-images is the folder of --val, which is missing")
        return None
    return open_data(parse_source(options.val), "val", options.val_images, options.allow_outside)


def _check_outputs(options: argparse.Namespace, source: Source) -> None:
    """Refuse outputs that are inputs, or of another kind than they are written in, before any work."""
    for name, path, suffixes in (("-o", options.out, (".jpg", ".jpeg")), ("--json", options.json, (".json",))):
        if path is not None and path.suffix.lower() not in suffixes:
            raise UserError(f"{name} {path}: expected a name that ends in {' or '.join(suffixes)}")
    inputs = annotation_files(source) + ([] if options.val is None else annotation_files(parse_source(options.val)))
    check_outputs(inputs, {"-o": options.out, "--json": options.json})
    for path in (options.out, options.json):
        if path is not None:
            require_writable(path)


def _config(options: argparse.Namespace) -> Config:
    config = starting_config(options.recipe)
    given = {name: value for name in ("short_side", "long_side") if (value := getattr(options, name)) is not None}
    return replace(config, preprocess=replace(config.preprocess, **given))


if __name__ == "__main__":
    run_main(main)
