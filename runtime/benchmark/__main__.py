"""Measure how fast deployed models run, stage by stage and through the pipeline, with the conditions of the run.

    python -m runtime.benchmark model.onnx --images photos/
    python -m runtime.benchmark model.onnx int8.onnx --images photos/ --batch 1 8 16 --json b.json --plot b.png
    python -m runtime.benchmark fp32.onnx int8.onnx --images photos/ --pair      # A B A B …, and ratios
    python -m runtime.benchmark m.onnx@cpu m.onnx@openvino --images photos/      # one model, two backends

A round takes every image once. Stage by stage, each stage waits for the one before; `pipeline` is what a user gets,
with stages that overlap. With --pair the rounds of the models alternate. Without it, the models are measured one after
the other, each alone in the process, so that the memory of each is known.
"""

from __future__ import annotations

if __name__ == "__main__":  # before the other imports, which take their time: Ctrl-C ends them in one line
    from runtime.interrupts import end_at_once

    end_at_once()

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from ..backends.options import BackendOptions, add_backend_arguments, backend_options
from ..bounds import Batch, Count, Positive, argument
from ..command_names import program
from ..command_parser import CommandParser
from ..errors import run_main
from ..files import atomic_write, require_writable
from ..images.limit import add_limit_argument, max_pixels
from ..machine.conditions import command_line
from ..model_spec import ModelSpec
from ..outputs import check_outputs
from ..temporaries import scratch_folder
from ..terminal import printable
from .images import ImageFiles, find_images, generate_images
from .plot import plot, require_matplotlib
from .report import Settings, to_json
from .run import run_benchmark
from .text import caveats, report_as_text


@contextmanager
def _images(options: argparse.Namespace) -> Iterator[ImageFiles]:
    if options.images:
        yield find_images(options.images, options.num_images, max_pixels(options.max_megapixels))
    else:
        with scratch_folder() as folder:
            yield generate_images(folder, options.num_images)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = CommandParser(
        prog=program("runtime.benchmark"),
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "models",
        nargs="+",
        type=ModelSpec.parse,
        metavar="model",
        help="deployed models; m.onnx@cpu runs the file with that backend",
    )
    parser.add_argument("--images", nargs="+", type=Path, help="image files or folders (default: generated images)")
    parser.add_argument(
        "--num-images", "--pictures", type=argument(Positive), default=32, help="only the first N images (%(default)s)"
    )
    parser.add_argument("--batch", nargs="+", type=argument(Batch), default=[1, 8], help="batch sizes (default: 1 8)")
    parser.add_argument("--rounds", type=argument(Positive), default=5, help="rounds over all images (%(default)s)")
    parser.add_argument(
        "--warmup", type=argument(Count), default=1, help="rounds before those, not recorded (%(default)s)"
    )
    parser.add_argument("--pair", action="store_true", help="alternate between the models and print ratios")
    parser.add_argument("--json", type=Path, help="write figures and conditions to this file")
    parser.add_argument("--plot", type=Path, help="draw the figures to this .png file (needs matplotlib)")
    add_limit_argument(parser)
    add_backend_arguments(parser)
    options = parser.parse_args(arguments)
    if options.pair and len(options.models) < 2:
        parser.error("--pair compares at least two models; give one twice to see how far two equal runs differ")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code, raises UserError."""
    options = _parse(arguments)
    reads = [*(spec.path for spec in options.models), *(options.images or ())]
    check_outputs(reads, {"--json": options.json, "--plot": options.plot})
    for path in (options.json, options.plot):
        if path is not None:
            require_writable(path)
    if options.plot is not None:
        require_matplotlib()
    settings = Settings(tuple(options.batch), options.rounds, options.warmup, options.pair)
    backend = BackendOptions(**backend_options(options))
    with _images(options) as image_files:
        for line in image_files.problems():
            print(printable(line), file=sys.stderr)
        command = command_line(arguments, "runtime.benchmark")
        report = run_benchmark(options.models, image_files, settings, backend, command)
    try:
        if options.json is not None:
            atomic_write(options.json, to_json(report))
        if options.plot is not None:
            plot(report, options.plot)
    finally:  # a full disk must not cost the figures
        print(report_as_text(report))
        for line in caveats(report):
            print(f"warning: {line}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    run_main(main)
