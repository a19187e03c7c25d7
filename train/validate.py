"""Evaluate a checkpoint in torch, with the runtime's own preprocessing, NMS and COCO scoring.

python -m train.validate runs/NAME/last.pt --annotations val.json --images val/
torchrun --nproc-per-node 8 -m train.validate runs/NAME/last.pt --annotations val.json --images val/
"""

from __future__ import annotations

if __name__ == "__main__":  # before the other imports, which take their time: Ctrl-C ends them in one line
    from runtime.interrupts import end_at_once

    end_at_once()

import sys
from dataclasses import replace
from pathlib import Path

import torch

from runtime.bounds import Batch, argument
from runtime.coco import load_coco
from runtime.coco.classes import print_differences
from runtime.coco.dataset import add_outside_argument
from runtime.coco.report import metrics_as_json, metrics_as_table
from runtime.command_names import program
from runtime.command_parser import CommandParser
from runtime.detector import Detector
from runtime.errors import run_main
from runtime.files import atomic_write
from runtime.images.limit import add_limit_argument, max_pixels
from runtime.outputs import check_outputs
from runtime.tta import add_tta_arguments, parse_tta, with_tta

from .checkpoint import load_detector
from .trainer.distributed import process_group
from .trainer.evaluation import TorchBackend, evaluate_distributed


def main() -> int:
    """The command: print the COCO metrics of a checkpoint, and write them where asked for."""
    parser = CommandParser(prog=program("train.validate"), description=__doc__.split("\n")[0])
    parser.add_argument("checkpoint", type=Path, help="last.pt or best.pt of a run")
    parser.add_argument("--annotations", type=Path, required=True, help="COCO annotation file")
    parser.add_argument("--images", type=Path, required=True, help="folder of the images")
    add_outside_argument(parser)
    parser.add_argument("--batch", type=argument(Batch), default=8, help="images at a time (%(default)s)")
    parser.add_argument("--json", type=Path, help="write the metrics to this file")
    add_limit_argument(parser)
    add_tta_arguments(parser)
    options = parser.parse_args()
    check_outputs([options.checkpoint, options.annotations, options.images], {"--json": options.json})
    with process_group(torch.cuda.is_available()) as world:
        loaded = load_detector(options.checkpoint)
        loaded.detector.to("cuda" if torch.cuda.is_available() else "cpu")
        dataset = load_coco(options.annotations, options.images, allow_outside=options.allow_outside)
        dataset = replace(dataset, max_pixels=max_pixels(options.max_megapixels))
        detector = Detector(TorchBackend(loaded.detector, loaded.config, loaded.classes))
        if world.is_main:
            print_differences(detector.manifest, dataset)
        bar = sys.stderr.isatty()
        seen = with_tta(detector, parse_tta(options))
        evaluation = evaluate_distributed(seen, dataset, world, options.batch, progress=bar)
        if world.is_main:
            print(metrics_as_table(evaluation.metrics))
            if options.json is not None:
                atomic_write(options.json, metrics_as_json(evaluation.metrics, evaluation.speed))
    return 0


if __name__ == "__main__":
    run_main(main)
