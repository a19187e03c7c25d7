"""An exported file or an engine becomes a model repository of the Triton Inference Server.

    python -m export.to_triton model.onnx -o repository
    python -m export.to_triton model.engine -o repository --name cells --front-instances 4
    python -m export.to_triton model.onnx -o repository --network inline --backend cpu

The repository gets two models. NAME takes a JPEG or PNG file's bytes, or uint8 pixels, of an image of any size, and
returns its detections in its own pixels; clients ask this one. NAME_network is the network in Triton's ONNX Runtime or
TensorRT backend. With --network inline, NAME runs the network itself in one of the toolkit's backends, and is alone.
NAME is a Python model, so the server's Python needs the toolkit (pip install atss-toolkit).
"""

from __future__ import annotations

if __name__ == "__main__" and not __package__:  # run as `python export/to_triton.py`: become `python -m …`
    import runpy
    import sys
    from pathlib import Path

    sys.path[0] = str(Path(__file__).resolve().parents[1])
    runpy.run_module("export.to_triton", run_name="__main__", alter_sys=True)

if __name__ == "__main__":  # before the other imports, which take their time: Ctrl-C ends them in one line
    from runtime.interrupts import end_at_once

    end_at_once()

import argparse
from pathlib import Path
from typing import get_args

from runtime.backends.options import BACKENDS
from runtime.bounds import Batch, Milliseconds, Positive, argument
from runtime.command_names import program
from runtime.command_parser import CommandParser
from runtime.errors import run_main
from runtime.images.limit import add_limit_argument

from .triton.config import Device, Placement, ServingOptions
from .triton.repository import write_repository


def main(arguments: list[str] | None = None) -> int:
    """Run the command. Returns 0; raises UserError where no repository was written."""
    options = _parser().parse_args(arguments)
    serving = ServingOptions(
        placement=options.network,
        device=options.device,
        instances=options.instances,
        front_instances=options.front_instances,
        batch_max=options.batch_max,
        queue_delay_us=round(1000 * options.queue_delay_ms),
        backend=options.backend,
        max_megapixels=options.max_megapixels,
    )
    written = write_repository(Path(options.model), Path(options.output), options.name, serving)
    models = " and ".join(filter(None, (written.front, written.network)))
    print(f"{written.root}: {models}")
    print(f"start it: tritonserver --model-repository={written.root.resolve()}")
    print(f"ask it:   python -m runtime.detect triton://localhost:8001/{written.front} IMAGE")
    return 0


def _parser() -> CommandParser:
    parser = CommandParser(
        prog=program("export.to_triton"),
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add, default = parser.add_argument, ServingOptions()
    add("model", metavar="MODEL", help="exported file (.onnx) or engine (.engine)")
    add("-o", "--output", metavar="DIR", required=True, help="model repository; it may have other models")
    add("--name", help="name of the model that clients ask; default: the file's")
    add(
        "--network",
        choices=get_args(Placement),
        default=default.placement,
        help="what runs the network: a backend of Triton, or the toolkit inside the model in front (%(default)s)",
    )
    add(
        "--device",
        choices=get_args(Device),
        default=default.device,
        help="of the network; auto: GPUs where the server has any (%(default)s)",
    )
    add(
        "--instances",
        type=argument(Positive),
        default=default.instances,
        metavar="N",
        help="of the network, a device (%(default)s)",
    )
    add(
        "--front-instances",
        type=argument(Positive),
        default=default.front_instances,
        metavar="N",
        help="processes that decode and resize (%(default)s)",
    )
    add(
        "--batch-max",
        type=argument(Batch),
        metavar="N",
        help="largest batch that the server makes; default: the file's",
    )
    add(
        "--queue-delay-ms",
        type=argument(Milliseconds),
        default=default.queue_delay_us / 1000,
        metavar="MS",
        help="how long an image waits for others to join its batch (%(default)s)",
    )
    add(
        "--backend",
        choices=["auto", *BACKENDS],
        default=default.backend,
        help="inline: the toolkit's backend that runs the network (%(default)s)",
    )
    add_limit_argument(parser)
    return parser


if __name__ == "__main__":
    run_main(main)
