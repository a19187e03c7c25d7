"""An exported ONNX file in another precision: fp16, bf16, int8 or fp8, made in the file's own types.

    python -m export.quantize mine.onnx --precision fp16
    python -m export.quantize mine.onnx --precision int8 --images photos --annotations train.json
    python -m export.quantize mine.onnx --precision int8 --target cpu --images photos
    python -m export.quantize mine.onnx --precision int8 --images photos --max-ap-loss 0.3 --val-annotations val.json

Only the network changes; scores, boxes and NMS stay float32. `--target` says what the file is for: `tensorrt` (GPUs:
int8 is symmetric with the rest in fp16, NMS has few and wide steps), `cpu` (ONNX Runtime and OpenVINO on every
processor) or `cpu-vnni` (int8 for processors with VNNI or ARM's dot product, which sum all 8 bits exactly; `python -m
runtime.doctor` says whether this one does). The new file is published only after verification against the float32 file
(`export.verify`). No torch is needed.
"""

from __future__ import annotations

if __name__ == "__main__" and not __package__:  # run as `python export/quantize.py`: become `python -m export.quantize`
    import runpy
    import sys
    from pathlib import Path

    sys.path[0] = str(Path(__file__).resolve().parents[1])
    runpy.run_module("export.quantize", run_name="__main__", alter_sys=True)

if __name__ == "__main__":  # before the other imports, which take their time: Ctrl-C ends them in one line
    from runtime.interrupts import end_at_once

    end_at_once()

import sys
from typing import Annotated, get_args

from runtime.bounds import Bounds, Positive, argument
from runtime.command_names import program
from runtime.command_parser import CommandParser
from runtime.errors import run_main
from runtime.images.limit import add_limit_argument, max_pixels
from runtime.manifest import Precision

from .api import quantize
from .calibration import METHODS
from .console import log_to_console
from .quantization.scheme import CALIBRATION_IMAGES, Target

Points = Annotated[float, Bounds(0, 100)]  # of AP


def main(arguments: list[str] | None = None) -> int:
    """Run the command. Returns 0, or 1 where the file failed its verification; raises UserError."""
    options = _parser().parse_args(arguments)
    with log_to_console():
        converted = quantize(
            options.model,
            options.precision,
            options.output,
            target=options.target,
            images=options.images,
            annotations=options.annotations,
            calibration_count=options.calibration_images,
            calibration=options.calibration,
            method=options.method,
            max_ap_loss=options.max_ap_loss,
            val_annotations=options.val_annotations,
            val_images=options.val_images,
            max_pixels=max_pixels(options.max_megapixels),
            show_progress=sys.stderr.isatty(),
        )
    return 0 if converted.passed else 1


def _parser() -> CommandParser:
    parser = CommandParser(prog=program("export.quantize"), description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", metavar="MODEL.onnx", help="float32 file that export.to_onnx wrote")
    parser.add_argument("--precision", required=True, choices=[p for p in get_args(Precision) if p != "fp32"])
    parser.add_argument("-o", "--output", metavar="OUT.onnx", help="default: MODEL.PRECISION.onnx")
    parser.add_argument(
        "--target", choices=get_args(Target), default="tensorrt", help="what the file is for (%(default)s)"
    )
    parser.add_argument(
        "--images", metavar="DIR", help="images to calibrate on; the files are compared on others of them"
    )
    parser.add_argument("--annotations", metavar="JSON", help="calibrate only on the images that this COCO file lists")
    parser.add_argument(
        "--calibration-images",
        type=argument(Positive),
        default=CALIBRATION_IMAGES,
        metavar="N",
        help="calibrate on N images at most (%(default)s)",
    )
    parser.add_argument(
        "--calibration",
        metavar="JSON",
        help="ranges to reuse, or to write; default: MODEL.calibration.json, replaced where it doesn't fit",
    )
    parser.add_argument("--method", choices=METHODS, default="max", help="how ranges are chosen (%(default)s)")
    parser.add_argument(
        "--max-ap-loss",
        type=argument(Points),
        metavar="POINTS",
        help="keep blocks of the network in float until AP falls by no more than POINTS",
    )
    parser.add_argument(
        "--val-annotations", metavar="JSON", help="measure AP on this COCO file (default: --annotations)"
    )
    parser.add_argument("--val-images", metavar="DIR", help="folder of its images (default: --images)")
    add_limit_argument(parser)
    return parser


if __name__ == "__main__":
    run_main(main)
