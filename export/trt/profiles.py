"""Optimization profiles: the batches and canvases that an engine takes, within those of its graph, and is tuned for."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence

from runtime.backends.engine_file import Profile
from runtime.command_names import TO_ONNX
from runtime.errors import UserError
from runtime.images.preprocess import plan
from runtime.manifest import InputShapes, Manifest

_SIDES = re.compile(r"(\d+)[xX×](\d+)")


class ProfileError(UserError):
    """Batches or canvases that the graph doesn't take, or that are no range."""


@dataclasses.dataclass(frozen=True)
class Canvases:
    """A profile's canvases, each (height, width) px."""

    least: tuple[int, int]
    best: tuple[int, int]
    most: tuple[int, int]


def make_profiles(
    manifest: Manifest, batch: Sequence[int] | None = None, shapes: Sequence[str] | None = None
) -> tuple[Profile, ...]:
    """A profile for each of `shapes`, all with the same `batch` (least, tuned for, largest).

    A shape is HxW for one canvas, or HxW:HxW:HxW for the least canvas, the one to tune for and the largest. By default
    the batches are the graph's, tuned for the largest, and the canvases `default_canvases`. Raises ProfileError.
    """
    batches = _batches(manifest.inputs, batch)
    canvases = [_parse(text, manifest) for text in shapes] if shapes else default_canvases(manifest)
    return tuple(
        Profile((batches[0], *c.least), (batches[1], *c.best), (batches[2], *c.most)) for c in dict.fromkeys(canvases)
    )


def default_canvases(manifest: Manifest) -> list[Canvases]:
    """The graph's one canvas, or two ranges: the canvases of landscape and of upright images of any aspect.

    Two narrow ranges need less memory than one range up to a square of the longer side, and each is tuned for its own.
    """
    shapes, pre = manifest.inputs, manifest.preprocess
    least = shapes.smallest_canvas
    if shapes.has_one_canvas:
        return [Canvases(least, least, least)]
    longest = _round_up(pre.long_side, pre.size_divisor)
    found = []
    for image_hw, most in (
        ((3, 4), (_round_up(pre.short_side, pre.size_divisor), longest)),
        ((4, 3), (longest, _round_up(pre.short_side, pre.size_divisor))),
    ):
        most = shapes.nearest_canvas(most)
        best = plan(image_hw, pre).canvas_hw
        found.append(Canvases(least, shapes.nearest_canvas((min(best[0], most[0]), min(best[1], most[1]))), most))
    return found


def describe_profile(profile: Profile) -> str:
    """A phrase such as "batch 1–16 (tuned for 8), canvases 64×64 to 800×1344 (tuned for 800×1088)"."""
    (batch0, *least), (batch, *best), (batch1, *most) = profile.least, profile.best, profile.most
    batches = f"batch {batch0}" if batch0 == batch1 else f"batch {batch0}–{batch1} (tuned for {batch})"
    if least == most:
        return f"{batches}, canvas {_sides(most)}"
    return f"{batches}, canvases {_sides(least)} to {_sides(most)} (tuned for {_sides(best)})"


def profile_options(profiles: Sequence[Profile]) -> str:
    """The command-line options of export.to_trt that make these profiles."""
    batches = " ".join(str(shape[0]) for shape in (profiles[0].least, profiles[0].best, profiles[0].most))
    shapes = []
    for profile in profiles:
        sides = [f"{height}x{width}" for _, height, width in (profile.least, profile.best, profile.most)]
        shapes.append(sides[0] if len(set(sides)) == 1 else ":".join(sides))
    return f"--batch {batches} --shapes {' '.join(shapes)}"


def _batches(shapes: InputShapes, given: Sequence[int] | None) -> tuple[int, int, int]:
    if given is None:
        return shapes.batch_min, shapes.batch_max, shapes.batch_max
    least, best, most = given
    if not shapes.batch_min <= least <= best <= most <= shapes.batch_max:
        raise ProfileError(
            f"--batch {least} {best} {most}: expected MIN ≤ OPT ≤ MAX within the {shapes.batch_min} to "
            f"{shapes.batch_max} that the graph was exported for; for more: {TO_ONNX} CHECKPOINT --batch-max N"
        )
    return least, best, most


def _parse(text: str, manifest: Manifest) -> Canvases:
    parts = [_SIDES.fullmatch(part) for part in text.split(":")]
    if len(parts) not in (1, 3) or not all(parts):
        raise ProfileError(f"--shapes {text}: expected HEIGHTxWIDTH, or three of them as MIN:OPT:MAX")
    sides = [(int(part[1]), int(part[2])) for part in parts if part]
    least, best, most = sides if len(sides) == 3 else sides * 3
    divisor, shapes = manifest.preprocess.size_divisor, manifest.inputs
    for height, width in sides:
        if height % divisor or width % divisor or not height or not width:
            raise ProfileError(f"--shapes {text}: expected sides that are multiples of {divisor}")
        if (height, width) != shapes.nearest_canvas((height, width)):
            raise ProfileError(
                f"--shapes {text}: the graph was exported for canvases {_sides(shapes.smallest_canvas)} to "
                f"{_sides(shapes.largest_canvas)}; {_sides((height, width))} is outside. Export it for that: "
                f"{TO_ONNX} CHECKPOINT --canvas HEIGHT WIDTH"
            )
    if any(not least[axis] <= best[axis] <= most[axis] for axis in (0, 1)):
        raise ProfileError(f"--shapes {text}: expected MIN ≤ OPT ≤ MAX in height and in width")
    return Canvases(least, best, most)


def _round_up(side: int, divisor: int) -> int:
    return -(-side // divisor) * divisor


def _sides(canvas_hw: Sequence[int]) -> str:
    return f"{canvas_hw[0]}×{canvas_hw[1]}"
