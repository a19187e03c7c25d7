"""An exported file becomes a folder for NVIDIA DeepStream: the model as nvinfer runs it, labels and configurations.

    python -m export.to_deepstream mine.onnx -o mine_deepstream
    python -m export.to_deepstream mine.fp16.onnx -o mine_deepstream --batch 4 --score 0.4 --canvas 544 960
    deepstream-app -c mine_deepstream/deepstream_app_config.txt         # where DeepStream is

The folder has `model.onnx` (float32 planes in, the outputs of DeepStream's parser for EfficientDet out), `labels.txt`,
`config_infer_primary.txt` and `deepstream_app_config.txt`. It is written only after the model was compared with the
exported file bit by bit. No torch is needed.
"""

from __future__ import annotations

if __name__ == "__main__" and not __package__:  # run as a script: become `python -m export.to_deepstream`
    import runpy
    import sys
    from pathlib import Path

    sys.path[0] = str(Path(__file__).resolve().parents[1])
    runpy.run_module("export.to_deepstream", run_name="__main__", alter_sys=True)

if __name__ == "__main__":  # before the other imports, which take their time: Ctrl-C ends them in one line
    from runtime.interrupts import end_at_once

    end_at_once()

from typing import get_args

from runtime.bounds import Batch, Fraction, Side, argument
from runtime.command_names import program
from runtime.command_parser import CommandParser
from runtime.errors import run_main
from runtime.images.limit import add_limit_argument, max_pixels

from .console import log_to_console
from .deepstream.contract import Version
from .deepstream.write import FRAME_HW, SCORE, write_deepstream


def main(arguments: list[str] | None = None) -> int:
    """Run the command. Returns 0, or 1 where the variant failed its verification; raises UserError."""
    options = _parser().parse_args(arguments)
    with log_to_console():
        written = write_deepstream(
            options.model,
            options.output,
            canvas_hw=tuple(options.canvas) if options.canvas else None,
            frame_hw=tuple(options.frame),
            batch=options.batch,
            score=options.score,
            version=options.deepstream,
            images=options.images,
            max_pixels=max_pixels(options.max_megapixels),
        )
    return 0 if written.passed else 1


def _parser() -> CommandParser:
    parser = CommandParser(prog=program("export.to_deepstream"), description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", metavar="MODEL.onnx", help="file that export.to_onnx or export.quantize wrote")
    parser.add_argument("-o", "--output", required=True, metavar="DIR", help="folder to write; it must not exist")
    parser.add_argument(
        "--canvas",
        type=argument(Side),
        nargs=2,
        metavar=("H", "W"),
        help="what frames are scaled into; default: from --frame",
    )
    parser.add_argument(
        "--frame",
        type=argument(Side),
        nargs=2,
        metavar=("H", "W"),
        default=FRAME_HW,
        help="size of the frames (1080 1920)",
    )
    parser.add_argument(
        "--batch", type=argument(Batch), default=1, metavar="N", help="frames at a time: the sources (%(default)s)"
    )
    parser.add_argument(
        "--score", type=argument(Fraction), default=SCORE, help="lowest score of a detection (%(default)s)"
    )
    parser.add_argument(
        "--deepstream", choices=get_args(Version), default="9", help="version of DeepStream (%(default)s)"
    )
    parser.add_argument("--images", metavar="DIR", help="images to compare on; default: synthetic ones")
    add_limit_argument(parser)
    return parser


if __name__ == "__main__":
    run_main(main)
