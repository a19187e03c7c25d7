"""Is the deployed file the detector that was trained? Compares their numbers. An export always ends with this.

    python -m export.verify runs/mine/best.pt mine.onnx
    python -m export.verify runs/mine/best.pt mine.engine    # see export/verification/engine.py
    python -m export.verify mine.onnx mine.int8.onnx --images photos

The reference is the checkpoint, or the float32 file of a conversion. Compared are
- the precision: the types of the file's convolutions, against its manifest;
- the manifest: classes, preprocessing and thresholds, against the reference's;
- a conversion: every node and constant, against the float32 file (export/verification/equivalence.py);
and for two batch sizes and, where the canvas isn't fixed, two canvases
- the network: its dense maps, elementwise, or by their root mean square error where the file isn't float32;
- postprocessing: the candidates that the reference and the file make of the same dense maps, as sets;
- NMS: the rows that the runtime returns, against plain greedy NMS of the file's candidates, row by row: once as the
  file flags its images, once with every image sent through the rerun on the host;
- the whole: the reference's detections after greedy NMS, against the runtime's, as sets.
The network's limits depend on the precision (export/verification/tolerance.py); the limits of what follows don't.
Half precision and int8 for TensorRT are emulated, because no CPU kernel computes them (export/onnx_model/emulation.py).
int8 for CPUs runs in this CPU's kernels and is also compared with its emulation, which tells saturating kernels from
unfit ranges. The exit code is 1 where a difference exceeds its limit.
"""

from __future__ import annotations

if __name__ == "__main__":  # before the other imports, which take their time: Ctrl-C ends them in one line
    from runtime.interrupts import end_at_once

    end_at_once()

from runtime.command_names import program
from runtime.command_parser import CommandParser
from runtime.decoders import DECODERS
from runtime.errors import run_main
from runtime.images.limit import add_limit_argument, max_pixels

from .api import verify
from .console import log_to_console


def main(arguments: list[str] | None = None) -> int:
    """Run the command. Returns 0, or 1 where the file differs too much; raises UserError."""
    parser = CommandParser(prog=program("export.verify"), description=(__doc__ or "").splitlines()[0])
    parser.add_argument("reference", metavar="CKPT", help="checkpoint that training wrote (.pt), or the float32 file")
    parser.add_argument("model", metavar="MODEL", help="file or engine that was made from it")
    parser.add_argument("--images", metavar="DIR", help="compare on images of this folder")
    parser.add_argument(
        "--onnx", metavar="FILE", help="ONNX file that the engine was built from; default: looked for beside the engine"
    )
    parser.add_argument(
        "--decode",
        choices=DECODERS[1:],
        help="also measure AP with this decoder beside OpenCV's, on --images by --annotations; the runtime accepts it "
        "if it loses at most 0.1 points",
    )
    parser.add_argument("--annotations", metavar="JSON", help="COCO file of --images, for --decode")
    add_limit_argument(parser)
    options = parser.parse_args(arguments)
    with log_to_console():
        verification = verify(
            options.reference,
            options.model,
            images=options.images,
            onnx_file=options.onnx,
            decode=options.decode,
            annotations=options.annotations,
            max_pixels=max_pixels(options.max_megapixels),
        )
    print(verification.table)
    return 0 if verification.passed else 1


if __name__ == "__main__":
    run_main(main)
