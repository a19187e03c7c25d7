"""An exported file or a checkpoint becomes a TensorRT engine: MODEL.engine, with MODEL.engine.json beside it.

    python -m export.to_trt mine.onnx
    python -m export.to_trt mine.onnx --flavor rtx --compute-capability 8.6 8.9 12.0     # on any machine
    python -m export.to_trt best.pt --precision fp16 --batch 1 8 8 --shapes 800x1344 1344x800

A standard engine (TensorRT 10.12 or later, or 11) is built on the GPU that runs it. TensorRT for RTX builds ahead of
time for the GPUs that are named. Both take the precision from the file's own types (`python -m export.quantize`).
The JSON has what the engine can't tell: its origin, hashes, versions, profiles, tensors, and the command that builds it
again. From an exported file this needs `onnx` and TensorRT, no torch: a deployment machine builds its own engines.
"""

from __future__ import annotations

if __name__ == "__main__" and not __package__:  # run as `python export/to_trt.py`: become `python -m export.to_trt`
    import runpy
    import sys
    from pathlib import Path

    sys.path[0] = str(Path(__file__).resolve().parents[1])
    runpy.run_module("export.to_trt", run_name="__main__", alter_sys=True)

if __name__ == "__main__":  # before the other imports, which take their time: Ctrl-C ends them in one line
    from runtime.interrupts import end_at_once

    end_at_once()

import os
import sys
from typing import Annotated, get_args

from runtime.bounds import Batch, Bounds, Side, argument
from runtime.command_names import program
from runtime.command_parser import CommandParser
from runtime.errors import run_main
from runtime.interrupts import ENDED_BY_SIGNAL
from runtime.manifest import Precision

from .api import build_engine
from .console import log_to_console
from .trt.settings import RTX_CAPABILITIES, HardwareCompatibility

Gib = Annotated[float, Bounds(0, 2**20, above=True)]
Level = Annotated[int, Bounds(0, 5)]


def main(arguments: list[str] | None = None) -> int:
    """Run the command. Returns 0; raises UserError where there is no engine."""
    options = make_parser().parse_args(arguments)
    with log_to_console():
        build_engine(
            options.model,
            options.output,
            flavor=options.flavor,
            batch=tuple(options.batch) if options.batch else None,
            shapes=options.shapes,
            compute_capabilities=options.compute_capability,
            separate=options.separate,
            workspace_gib=options.workspace,
            optimization_level=options.optimization_level,
            timing_cache=options.timing_cache,
            hardware_compatibility=options.hardware_compatibility,
            version_compatible=options.version_compatible,
            precision=options.precision,
            canvas_hw=tuple(options.canvas) if options.canvas else None,
            images=options.images,
            calibrate_on=options.calibrate_on,
            show_progress=sys.stderr.isatty(),
        )
    return 0


def make_parser() -> CommandParser:
    """The command's options. An engine's description names them in the command that builds it again."""
    parser = CommandParser(prog=program("export.to_trt"), description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("model", metavar="MODEL", help="exported file (.onnx) or checkpoint (.pt)")
    add("-o", "--output", metavar="OUT.engine", help="file to write; default: MODEL.engine")
    add("--flavor", choices=("auto", "tensorrt", "rtx"), default="auto", help="auto: tensorrt where there is a GPU")
    add(
        "--batch",
        type=argument(Batch),
        nargs=3,
        metavar=("MIN", "OPT", "MAX"),
        help="batches of the engine; default: the file's, tuned for the largest",
    )
    add(
        "--shapes",
        nargs="+",
        metavar="HxW",
        help="canvases, each an optimization profile: HxW, or MIN:OPT:MAX; default: landscape and upright images",
    )
    add(
        "--compute-capability",
        nargs="+",
        default=[],
        metavar="CC",
        help=f"GPUs to build for ahead of time (rtx): {', '.join(RTX_CAPABILITIES)}; default: the one here, else all",
    )
    add("--separate", action="store_true", help="one engine for each compute capability: OUT.sm86.engine, …")
    add("--workspace", type=argument(Gib), metavar="GIB", help="most scratch memory of a layer; default: the device's")
    add(
        "--optimization-level",
        type=argument(Level),
        metavar="0-5",
        help="a higher level searches longer; default: the library's",
    )
    add(
        "--timing-cache",
        metavar="FILE",
        help="read and write this file, which makes the next build much shorter (tensorrt)",
    )
    add(
        "--hardware-compatibility",
        choices=get_args(HardwareCompatibility),
        default="none",
        help="which other GPUs may run the engine, at some cost in speed (tensorrt)",
    )
    add(
        "--version-compatible",
        action="store_true",
        help="later versions of TensorRT may run the engine, at some cost in speed (tensorrt)",
    )
    checkpoint = parser.add_argument_group(
        "from a checkpoint",
        "Writes beside the engine, replacing files of these names: CKPT.onnx, CKPT.PRECISION.onnx (not for fp32), and "
        "for int8 and fp8 CKPT.calibration.json (ranges, which are reused while they fit).",
    ).add_argument
    checkpoint("--precision", choices=get_args(Precision), help="precision of the engine (fp16)")
    checkpoint("--canvas", type=argument(Side), nargs=2, metavar=("H", "W"), help="fix the canvas")
    checkpoint("--images", metavar="DIR", help="images to compare on; default: the validation images")
    checkpoint(
        "--calibrate-on", metavar="DIR", help="images to calibrate int8 and fp8 on; default: the training images"
    )
    return parser


if __name__ == "__main__":
    try:
        run_main(main)
    except SystemExit as ended:
        if isinstance(ended.code, int) and ended.code > ENDED_BY_SIGNAL:
            # TensorRT for RTX leaves threads of a stopped build behind, which crash when the interpreter ends first.
            sys.stderr.flush()
            os._exit(ended.code)
        raise
