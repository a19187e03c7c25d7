"""How an image is cut into tiles, and the command-line options that say it."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import Annotated, Literal, get_args

from ..bounds import Batch, Bounds, Positive, argument
from ..errors import UserError

Merge = Literal["nms", "ios"]
TileSide = Annotated[int, Bounds(32, 2**14)]
Overlap = Annotated[float, Bounds(0, 0.9)]


@dataclass(frozen=True)
class Tiles:
    """How an image is cut into tiles, and how their detections are merged."""

    side: TileSide  # px of the image; a smaller image is seen as it is
    overlap: Overlap = 0.2  # fraction of a side that neighbours share at least, rounded to whole pixels
    merge: Merge = "ios"  # see `merge_tiles`
    whole: bool = True  # see the whole image too, for objects larger than a tile
    most: Positive = 1000  # detections that are kept of an image that is cut
    batch: Batch | None = None  # tiles at a time; None: 8, or what the graph takes

    def __str__(self) -> str:
        """The settings in words, without the batch, on which no result depends."""
        whole = "and the whole image" if self.whole else "without the whole image"
        return f"tiles of {self.side} px, overlap {self.overlap:g}, {whole}, merged by {self.merge}"


def add_tile_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command-line options that `parse_tiles` reads."""
    group = parser.add_argument_group("tiling")
    group.add_argument(
        "--tiles", type=argument(TileSide), metavar="PX", help="cut larger images into tiles of this side, and merge"
    )
    group.add_argument(
        "--overlap",
        type=argument(Overlap),
        metavar="FRACTION",
        help=f"of a tile's side, that neighbours share ({Tiles.overlap})",
    )
    group.add_argument(
        "--merge",
        choices=get_args(Merge),
        help="which boxes of a class are one object: those with a large intersection over their union (nms), or over "
        f"the smaller one's area (ios) ({Tiles.merge})",
    )
    group.add_argument("--no-whole", action="store_true", help="do not look at the whole image as one more tile")
    group.add_argument(
        "--max-detections",
        type=argument(Positive),
        metavar="N",
        help=f"most detections of an image that is cut ({Tiles.most})",
    )


def parse_tiles(options: argparse.Namespace) -> Tiles | None:
    """The tiles that a command line with `add_tile_arguments` and --batch asks for; None: none. Raises UserError."""
    given = {
        "overlap": options.overlap,
        "merge": options.merge,
        "whole": False if options.no_whole else None,
        "most": options.max_detections,
    }
    chosen = {name: value for name, value in given.items() if value is not None}
    if options.tiles is None:
        if chosen:
            raise UserError("--overlap, --merge, --no-whole and --max-detections need --tiles PX, the side of a tile")
        return None
    return Tiles(options.tiles, **chosen, batch=options.batch)
