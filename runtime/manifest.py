"""The manifest of a deployed model: classes, preprocessing, thresholds, shapes, origin. Strict, versioned JSON."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from importlib import metadata
from typing import Annotated, Literal

from .bounds import Batch, Bounds, Fraction, Id, Items, Name, Sha256, Side
from .command_names import TO_ONNX
from .errors import UserError
from .files import as_utf8
from .json_file import JsonError, parse_json
from .records import RecordError, check_record, kind_of, record_from_dict, shown

MANIFEST_VERSION = 1
METADATA_KEY = "atss_toolkit.manifest"  # in an ONNX file's metadata

Precision = Literal["fp32", "fp16", "bf16", "int8", "fp8"]
ChannelOrder = Literal["rgb", "bgr"]
Pixel = Annotated[int, Bounds(0, 255)]
Shift = Annotated[float, Bounds(-1e4, 1e4)]
Scale = Annotated[float, Bounds(1e-4, 1e4)]
STRIDE = 32  # px, of the coarsest map of every backbone: canvases are its multiples
Interface = Literal["toolkit", "deepstream"]  # the inputs and outputs of a graph, and so the program that runs it


class ManifestError(UserError):
    """The manifest is missing, damaged or of another version."""


@dataclasses.dataclass(frozen=True)
class Preprocess:
    """How an image becomes the network's input. Pixel values are 0–255; triples are in RGB order."""

    short_side: Side  # the shorter side is resized to this …
    long_side: Side  # … unless the longer one would then exceed this
    # The canvas' sides are multiples of it.
    size_divisor: Annotated[int, Bounds(STRIDE, 2**14, multiple_of=STRIDE)] = 32
    pad_value: tuple[Pixel, Pixel, Pixel] = (124, 116, 104)  # the colour of the canvas where no image is
    # What is subtracted from the pixel values; ImageNet's unless a backbone brings another.
    mean: tuple[Shift, Shift, Shift] = (123.675, 116.28, 103.53)
    std: tuple[Scale, Scale, Scale] = (58.395, 57.12, 57.375)  # what they are divided by after that
    channel_order: ChannelOrder = "rgb"  # what the network eats inside its graph; canvases are always RGB
    # An image of at least twice the wanted size is reduced by 2, 4 or 8 before it is resized. That is fast, because a
    # JPEG decoder does it, and avoids the aliasing of a bilinear resize that skips pixels. Older models lack the field.
    divide_large: bool = dataclasses.field(default=True, metadata={"absent": False})

    def conflicts(self) -> Iterator[tuple[str, str]]:
        """See `bounds.Conflicts`."""
        if self.long_side < self.short_side:
            yield "long_side", f"at least short_side, here {self.short_side}"


@dataclasses.dataclass(frozen=True)
class Thresholds:
    """Limits of postprocessing; graph and host apply the same."""

    score: Annotated[float, Bounds(0, 1, below=True)] = 0.05  # class probability, exclusive
    candidates_per_level: Annotated[int, Bounds(1, 100_000)] = 1000  # boxes of a level that go into NMS, at most
    nms_iou: Annotated[float, Bounds(0, 1, above=True)] = 0.6  # of two boxes of a class above it, the lower one goes
    detections: Annotated[int, Bounds(1, 100_000)] = 100  # per image, at most
    # Legacy boxes include their last pixel, so that a side is x2 − x1 + 1. Only foreign checkpoints have them.
    legacy_plus_one: bool = False

    # The two properties below are the only place that knows what legacy boxes mean.

    @property
    def box_growth(self) -> tuple[float, float, float, float] | None:
        """What NMS and COCO's widths add to a box (x1, y1, x2, y2) for the area that it covers; None: nothing."""
        return (0.0, 0.0, 1.0, 1.0) if self.legacy_plus_one else None

    @property
    def decoded_shift(self) -> tuple[float, float, float, float] | None:
        """What is added to a decoded box: a legacy side of w pixels spans centre ± (w − 1) / 2. None: nothing."""
        return (0.5, 0.5, -0.5, -0.5) if self.legacy_plus_one else None


@dataclasses.dataclass(frozen=True)
class InputShapes:
    """Range of the `images` input; an axis with equal minimum and maximum has a fixed size."""

    batch_min: Batch
    batch_max: Batch
    height_min: Side
    height_max: Side
    width_min: Side
    width_max: Side

    def conflicts(self) -> Iterator[tuple[str, str]]:
        """See `bounds.Conflicts`."""
        for name, (low, high) in self.ranges.items():
            if high < low:
                yield f"{name}_max", f"at least {name}_min, here {low}"

    @property
    def ranges(self) -> dict[str, tuple[int, int]]:
        """Smallest and largest size of the axes "batch", "height" and "width" of `images` [B, H, W, 3], in order."""
        return {
            "batch": (self.batch_min, self.batch_max),
            "height": (self.height_min, self.height_max),
            "width": (self.width_min, self.width_max),
        }

    @property
    def smallest_canvas(self) -> tuple[int, int]:
        """Height and width, px."""
        return self.height_min, self.width_min

    @property
    def largest_canvas(self) -> tuple[int, int]:
        """Height and width, px."""
        return self.height_max, self.width_max

    @property
    def has_one_canvas(self) -> bool:
        """Whether the graph takes canvases of a single size."""
        return self.smallest_canvas == self.largest_canvas

    def nearest_canvas(self, canvas_hw: tuple[int, int]) -> tuple[int, int]:
        """The canvas (height, width) in range whose sides are nearest to these."""
        (height, width), (low_h, low_w), (high_h, high_w) = canvas_hw, self.smallest_canvas, self.largest_canvas
        return min(max(height, low_h), high_h), min(max(width, low_w), high_w)

    def canvas_for(self, needed_hw: tuple[int, int]) -> tuple[int, int] | None:
        """The smallest canvas (height, width) in range that holds `needed_hw`; None if it is larger than all."""
        height, width = self.nearest_canvas(needed_hw)
        return (height, width) if height >= needed_hw[0] and width >= needed_hw[1] else None

    def nearest_batch(self, batch: int) -> int:
        """The batch in range that is nearest to this."""
        return min(max(batch, self.batch_min), self.batch_max)

    def summary(self) -> str:
        """One phrase: canvases (height × width) and batches."""
        least, most = ("×".join(map(str, canvas)) for canvas in (self.smallest_canvas, self.largest_canvas))
        canvas = f"canvas {least} (height × width)" if self.has_one_canvas else f"canvases {least} to {most}"
        return f"{canvas}, batch {self.batch_min}-{self.batch_max}"


@dataclasses.dataclass(frozen=True)
class Manifest:
    """All that running a deployed model needs to know beside its graph."""

    classes: Annotated[tuple[Name, ...], Items(1, 100_000)]
    # The data set's own id of each class.
    category_ids: Annotated[tuple[Id, ...], Items(1, 100_000, distinct=True)]
    preprocess: Preprocess
    thresholds: Thresholds
    precision: Precision
    inputs: InputShapes
    recipe: Name
    checkpoint_sha256: Sha256
    graph_sha256: Sha256
    toolkit_version: Name
    libraries: dict[Name, Name]  # name → version
    ap: Fraction | None = None  # COCO AP in 0–1, if it was measured
    # int8 only: whether sums of two products stay below 2¹⁵, so that kernels which add them in 16 bits (x86 without
    # VNNI, ARM without the dot product) are exact. None: not int8, or an older file, whose sums may be larger.
    sums_fit_16_bits: bool | None = dataclasses.field(default=None, metadata={"absent": None})
    # "toolkit": this runtime's inputs and outputs. "deepstream": those of DeepStream's nvinfer. Older files lack it.
    interface: Interface = dataclasses.field(default="toolkit", metadata={"absent": "toolkit"})
    version: Annotated[int, Bounds(MANIFEST_VERSION, MANIFEST_VERSION)] = MANIFEST_VERSION

    def conflicts(self) -> Iterator[tuple[str, str]]:
        """See `bounds.Conflicts`."""
        if len(self.category_ids) != len(self.classes):
            yield "category_ids", f"as many ids as classes, here {len(self.classes)}"
        divisor = self.preprocess.size_divisor
        for axis in ("height", "width"):
            for name, size in zip((f"{axis}_min", f"{axis}_max"), self.inputs.ranges[axis], strict=True):
                if size % divisor:
                    yield f"inputs.{name}", f"a multiple of preprocess.size_divisor, here {divisor}"

    @property
    def categories(self) -> dict[int, str]:
        """Class name of each category id."""
        return dict(zip(self.category_ids, self.classes, strict=True))


def to_json(manifest: Manifest) -> str:
    """JSON text of a manifest. Raises ManifestError if a value makes no sense."""
    check(manifest, "this manifest")
    return as_utf8(json.dumps(dataclasses.asdict(manifest), indent=2, ensure_ascii=False, allow_nan=False))


def from_json(text: str | bytes, source: str) -> Manifest:
    """The manifest in `text`; `source` names the file in messages.

    Raises ManifestError that names the field if one is missing, unknown, of the wrong type or out of range. For another
    version it names the command that exports the model again.
    """
    try:
        fields = parse_json(text, f"{source}: the manifest")
    except JsonError as error:
        raise ManifestError(f"{error}; {_REBUILD}") from error
    if not isinstance(fields, dict):
        raise ManifestError(f"{source}: the manifest is {kind_of(fields)}, expected an object; {_REBUILD}")
    version = fields.get("version")
    if version != MANIFEST_VERSION or isinstance(version, bool):
        raise ManifestError(
            f"{source}: manifest version {shown(version)}, this toolkit ({toolkit_version()}) reads version "
            f"{MANIFEST_VERSION}; {_REBUILD}"
        )
    try:
        return record_from_dict(Manifest, fields, source)
    except RecordError as error:
        raise ManifestError(f"{error}; {_REBUILD}") from error


def toolkit_version() -> str:
    """Version of the installed distribution; "0+unknown" if the toolkit is not installed."""
    try:
        return metadata.version("atss-toolkit")
    except metadata.PackageNotFoundError:
        return "0+unknown"


_REBUILD = f"export the checkpoint again: {TO_ONNX} CHECKPOINT"


def check(manifest: Manifest, source: str) -> None:
    """Raise ManifestError naming the first field whose value makes no sense."""
    try:
        check_record(manifest, source)
    except RecordError as error:
        raise ManifestError(f"{error}; {_REBUILD}") from error
