"""Convert a published checkpoint of another implementation to a checkpoint of this toolkit.

    python -m train.pretrained FILE                        # says what it is, writes NAME.converted.pt
    python -m train.pretrained FILE -o atss.pt --dialect authors_atss
    python -m export.to_onnx atss.pt                       # deploy it,
    python -m train atss.pt --out runs/mine --data.…       # or fine-tune it on other classes

Only tensors and plain values are read: a file that would run code when unpickled is refused.
"""

from __future__ import annotations

if __name__ == "__main__":  # before the other imports, which take their time: Ctrl-C ends them in one line
    from runtime.interrupts import end_at_once

    end_at_once()

import argparse
from pathlib import Path

from runtime.command_names import program
from runtime.errors import run_main
from runtime.outputs import check_outputs

from ..checkpoint import Checkpoint, save_checkpoint
from .convert import convert
from .dialects import DIALECTS


def main() -> None:
    """The command: convert a checkpoint, say what it is, and print the file written."""
    parser = argparse.ArgumentParser(prog=program("train.pretrained"), description=(__doc__ or "").split("\n")[0])
    parser.add_argument("file", type=Path, metavar="FILE", help="checkpoint that another implementation saved")
    parser.add_argument("-o", "--output", type=Path, metavar="CKPT", help="default: FILE with the suffix .converted.pt")
    parser.add_argument(
        "--dialect", help=f"dialect of the file, one of {', '.join(d.name for d in DIALECTS)} (default: recognise it)"
    )
    options = parser.parse_args()
    out = options.output or options.file.with_suffix(".converted.pt")
    check_outputs([options.file], {"-o": out})
    found = convert(options.file, options.dialect)
    model = found.config.model
    deformable = ", DCNv2" if model.backbone.deformable_stages else ""
    print(f"{found.dialect.title} ({found.dialect.name}): {model.backbone.name}{deformable}, "
          f"{len(found.classes.names)} classes, NMS at {found.config.thresholds.nms_iou}")  # fmt: skip
    save_checkpoint(out, Checkpoint(found.config, found.classes, 0, found.state, None, {}, {}, None, -1.0))
    print(out)


if __name__ == "__main__":
    run_main(main)
