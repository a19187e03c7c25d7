"""A checkpoint becomes one ONNX file for ONNX Runtime, TensorRT and TensorRT for RTX: network, postprocessing, NMS.

    python -m export.to_onnx runs/mine/best.pt -o mine.onnx
    python -m export.to_onnx runs/mine/best.pt --canvas 800 1344 --batch-max 4
    python -m export.to_onnx runs/mine/best.pt -o mine.onnx --precision int8    # mine.onnx and mine.int8.onnx

The file takes every batch up to --batch-max and every canvas in its range whose sides are multiples of the recipe's
size divisor (32, unless the recipe says otherwise). --canvas fixes one canvas. The file describes itself in its
metadata: classes, preprocessing, thresholds, origin. It is published only after verification against the checkpoint
(`export.verify`); a file that differs too much is left as NAME.failed.onnx.
"""

from __future__ import annotations

if __name__ == "__main__" and not __package__:  # run as `python export/to_onnx.py`: become `python -m export.to_onnx`
    import runpy
    import sys
    from pathlib import Path

    sys.path[0] = str(Path(__file__).resolve().parents[1])
    runpy.run_module("export.to_onnx", run_name="__main__", alter_sys=True)

if __name__ == "__main__":  # before the other imports, which take their time: Ctrl-C ends them in one line
    from runtime.interrupts import end_at_once

    end_at_once()

import sys
from typing import get_args

from runtime.bounds import Batch, Side, argument
from runtime.command_names import program
from runtime.command_parser import CommandParser
from runtime.errors import run_main
from runtime.manifest import Interface, Precision

from .api import export_onnx
from .arguments import BATCH_MAX
from .console import log_to_console
from .quantization.scheme import Target


def main(arguments: list[str] | None = None) -> int:
    """Run the command. Returns 0, or 1 where a file failed its verification; raises UserError."""
    options = _parser().parse_args(arguments)
    with log_to_console():
        exported = export_onnx(
            options.checkpoint,
            options.output,
            batch_max=options.batch_max,
            canvas_hw=tuple(options.canvas) if options.canvas else None,
            precision=options.precision,
            target=options.target,
            images=options.images,
            calibrate_on=options.calibrate_on,
            interface=options.interface,
            show_progress=sys.stderr.isatty(),
        )
    return 0 if exported.passed else 1


def _parser() -> CommandParser:
    parser = CommandParser(prog=program("export.to_onnx"), description=(__doc__ or "").splitlines()[0])
    parser.add_argument("checkpoint", metavar="CKPT", help="checkpoint that training wrote (.pt)")
    parser.add_argument("-o", "--output", metavar="OUT.onnx", help="file to write; default: CKPT with the suffix .onnx")
    parser.add_argument(
        "--batch-max", type=argument(Batch), default=BATCH_MAX, metavar="N", help="largest batch (%(default)s)"
    )
    parser.add_argument(
        "--images", metavar="DIR", help="compare on images of this folder; default: the validation images"
    )
    parser.add_argument(
        "--canvas", type=argument(Side), nargs=2, metavar=("H", "W"), help="fix the canvas; default: any in range"
    )
    parser.add_argument(
        "--precision",
        choices=get_args(Precision),
        default="fp32",
        help="also write OUT.PRECISION.onnx (export.quantize); default: the float32 file alone",
    )
    parser.add_argument(
        "--target", choices=get_args(Target), help="what the file in PRECISION is for; default: tensorrt, of fp32: cpu"
    )
    parser.add_argument(
        "--calibrate-on", metavar="DIR", help="images to calibrate int8 and fp8 on; default: the training images"
    )
    parser.add_argument(
        "--interface",
        choices=get_args(Interface),
        default="toolkit",
        help="inputs and outputs: this toolkit's, or those of DeepStream's nvinfer (%(default)s)",
    )
    return parser


if __name__ == "__main__":
    run_main(main)
