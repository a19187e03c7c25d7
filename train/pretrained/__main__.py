"""Convert a published checkpoint of another implementation to a checkpoint of this toolkit.

    python -m train.pretrained --list                      # names, AP, licences
    python -m train.pretrained mm_atss_r50                 # downloads it, writes mm_atss_r50.pt
    python -m train.pretrained mm_atss_r50 --from MIRROR   # from a folder or another address
    python -m train.pretrained FILE                        # says what it is, writes NAME.converted.pt
    python -m train.pretrained FILE -o atss.pt --dialect authors_atss
    python -m export.to_onnx atss.pt                       # deploy it,
    python -m train atss.pt --out runs/mine --data.…       # or fine-tune it on other classes

Downloads are kept in `ATSS_HOME`. Only tensors and plain values are read: a file that would run code when unpickled is
refused.
"""

from __future__ import annotations

if __name__ == "__main__":  # before the other imports, which take their time: Ctrl-C ends them in one line
    from runtime.interrupts import end_at_once

    end_at_once()

import argparse
from pathlib import Path

from runtime.command_names import program
from runtime.command_parser import CommandParser
from runtime.errors import UserError, run_main
from runtime.files import require_writable
from runtime.outputs import check_outputs

from ..checkpoint import Checkpoint, save_checkpoint
from .cache import address_of, fetch, is_offline, place_of
from .catalogue import CATALOGUE, describe, find, list_names
from .convert import convert, dialect_named
from .dialects import DIALECTS


def main() -> None:
    """The command: get a checkpoint, convert it, say what it is, and print the file written."""
    options = _options()
    if options.list:
        print(list_names())
        return
    if options.file is None:
        raise UserError("give the name of a published checkpoint (--list shows them) or a file")
    if options.dialect is not None:
        dialect_named(options.dialect)  # refuses an unknown one now, not after a download
    given = Path(options.file)
    is_name = options.file in CATALOGUE or not (given.exists() or given.suffix or len(given.parts) > 1)
    if not is_name:
        if options.source is not None or options.offline:
            raise UserError(f"--from and --offline are for names, and {given} is a file; leave them out")
        out = options.output or given.with_suffix(".converted.pt")
        check_outputs([given], {"-o": out})
        _convert(given, out, options.dialect)
        return
    published = find(options.file)
    is_address = options.source is not None and "://" in options.source
    offline = options.offline or is_offline()
    if is_address:
        address_of(published, options.source)
        if offline:
            raise UserError(f"--from {options.source} is an address, and --offline or ATSS_OFFLINE forbids downloads")
    out = options.output or Path(f"{options.file}.pt")
    check_outputs([place_of(published, options.source)], {"-o": out})
    require_writable(out)
    print(describe(options.file, published), flush=True)
    _convert(fetch(published, options.source, offline), out, options.dialect or published.dialect)


def _options() -> argparse.Namespace:
    parser = CommandParser(prog=program("train.pretrained"), description=(__doc__ or "").split("\n")[0])
    parser.add_argument("file", nargs="?", metavar="NAME|FILE", help="name of a published checkpoint, or its file")
    parser.add_argument(
        "-o", "--output", type=Path, metavar="CKPT", help="default: NAME.pt, or FILE with the suffix .converted.pt"
    )
    parser.add_argument(
        "--dialect", help=f"dialect of the file, one of {', '.join(d.name for d in DIALECTS)} (default: recognise it)"
    )
    parser.add_argument(
        "--from",
        dest="source",
        metavar="URL|FOLDER",
        help="mirror that has the file under its publisher's name (default: the publisher's address)",
    )
    parser.add_argument("--offline", action="store_true", help="download nothing (also: ATSS_OFFLINE=1)")
    parser.add_argument("--list", action="store_true", help="print names, AP, sizes and licences")
    return parser.parse_args()


def _convert(path: Path, out: Path, dialect: str | None) -> None:
    found = convert(path, dialect)
    model = found.config.model
    deformable = ", DCNv2" if model.backbone.deformable_stages else ""
    print(f"{found.dialect.title} ({found.dialect.name}): {model.backbone.name}{deformable}, "
          f"{len(found.classes.names)} classes, NMS at {found.config.thresholds.nms_iou}")  # fmt: skip
    save_checkpoint(out, Checkpoint(found.config, found.classes, 0, found.state, None, {}, {}, None, -1.0))
    print(out)


if __name__ == "__main__":
    run_main(main)
