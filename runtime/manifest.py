"""The manifest of a deployed model: classes, preprocessing, thresholds, shapes, origin. Strict, versioned JSON."""

from __future__ import annotations

import dataclasses
import json
from importlib import metadata
from typing import Literal

from .command_names import TO_ONNX
from .errors import UserError
from .files import as_utf8
from .records import RecordError, kind_of, record_from_dict

MANIFEST_VERSION = 1
METADATA_KEY = "atss_toolkit.manifest"  # in an ONNX file's metadata

Precision = Literal["fp32", "fp16", "bf16", "int8", "fp8"]
ChannelOrder = Literal["rgb", "bgr"]
Interface = Literal["toolkit", "deepstream"]  # the inputs and outputs of a graph, and so the program that runs it


class ManifestError(UserError):
    """The manifest is missing, damaged or of another version."""


@dataclasses.dataclass(frozen=True)
class Preprocess:
    """How an image becomes the network's input. Pixel values are 0–255; triples are in RGB order."""

    short_side: int  # the shorter side is resized to this …
    long_side: int  # … unless the longer one would then exceed this
    size_divisor: int = 32  # the canvas' sides are multiples of it
    pad_value: tuple[int, int, int] = (124, 116, 104)
    mean: tuple[float, float, float] = (123.675, 116.28, 103.53)  # ImageNet's
    std: tuple[float, float, float] = (58.395, 57.12, 57.375)
    channel_order: ChannelOrder = "rgb"  # what the network eats inside its graph; canvases are always RGB
    # An image of at least twice the wanted size is reduced by 2, 4 or 8 before it is resized. That is fast, because a
    # JPEG decoder does it, and avoids the aliasing of a bilinear resize that skips pixels. Older models lack the field.
    divide_large: bool = dataclasses.field(default=True, metadata={"absent": False})


@dataclasses.dataclass(frozen=True)
class Thresholds:
    """Limits of postprocessing; graph and host apply the same."""

    score: float = 0.05  # class probability, exclusive
    candidates_per_level: int = 1000
    nms_iou: float = 0.6
    detections: int = 100  # per image
    # Legacy boxes include their last pixel, so that a side is x2 − x1 + 1. Only foreign checkpoints have them. The two
    # properties below are the only place that knows what this means.
    legacy_plus_one: bool = False

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

    batch_min: int
    batch_max: int
    height_min: int
    height_max: int
    width_min: int
    width_max: int

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

    classes: tuple[str, ...]
    category_ids: tuple[int, ...]  # the data set's own id of each class
    preprocess: Preprocess
    thresholds: Thresholds
    precision: Precision
    inputs: InputShapes
    recipe: str
    checkpoint_sha256: str
    graph_sha256: str
    toolkit_version: str
    libraries: dict[str, str]  # name → version
    ap: float | None = None  # COCO AP in 0–1, if it was measured
    # int8 only: whether sums of two products stay below 2¹⁵, so that kernels which add them in 16 bits (x86 without
    # VNNI, ARM without the dot product) are exact. None: not int8, or an older file, whose sums may be larger.
    sums_fit_16_bits: bool | None = dataclasses.field(default=None, metadata={"absent": None})
    # "toolkit": this runtime's inputs and outputs. "deepstream": those of DeepStream's nvinfer. Older files lack it.
    interface: Interface = dataclasses.field(default="toolkit", metadata={"absent": "toolkit"})
    version: int = MANIFEST_VERSION

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
        fields = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ManifestError(f"{source}: the manifest is not JSON ({error}); {_REBUILD}") from error
    if not isinstance(fields, dict):
        raise ManifestError(f"{source}: the manifest is {kind_of(fields)}, expected an object; {_REBUILD}")
    version = fields.get("version")
    if version != MANIFEST_VERSION or isinstance(version, bool):
        raise ManifestError(
            f"{source}: manifest version {version!r}, this toolkit ({toolkit_version()}) reads version "
            f"{MANIFEST_VERSION}; {_REBUILD}"
        )
    try:
        manifest = record_from_dict(Manifest, fields, source)
    except RecordError as error:
        raise ManifestError(f"{error}; {_REBUILD}") from error
    check(manifest, source)
    return manifest


def toolkit_version() -> str:
    """Version of the installed distribution; "0+unknown" if the toolkit is not installed."""
    try:
        return metadata.version("atss-toolkit")
    except metadata.PackageNotFoundError:
        return "0+unknown"


_REBUILD = f"export the checkpoint again: {TO_ONNX} CHECKPOINT"


def check(manifest: Manifest, source: str) -> None:
    """Raise ManifestError naming the first field whose value makes no sense."""
    pre, thresholds, ranges = manifest.preprocess, manifest.thresholds, manifest.inputs.ranges
    rules = [
        ("classes", len(manifest.classes) >= 1, "at least one class"),
        ("category_ids", len(manifest.category_ids) == len(manifest.classes), "as many ids as classes"),
        ("category_ids", len(set(manifest.category_ids)) == len(manifest.category_ids), "distinct ids"),
        ("preprocess.short_side", pre.short_side >= 1, "at least 1"),
        ("preprocess.long_side", pre.long_side >= pre.short_side, "at least short_side"),
        ("preprocess.size_divisor", pre.size_divisor >= 1, "at least 1"),
        ("preprocess.pad_value", all(0 <= value <= 255 for value in pre.pad_value), "values in 0–255"),
        ("preprocess.std", all(value > 0 for value in pre.std), "positive values"),
        ("thresholds.score", 0 <= thresholds.score < 1, "a value in 0–1"),
        ("thresholds.nms_iou", 0 < thresholds.nms_iou <= 1, "a value in 0–1"),
        ("thresholds.candidates_per_level", thresholds.candidates_per_level >= 1, "at least 1"),
        ("thresholds.detections", thresholds.detections >= 1, "at least 1"),
        ("ap", manifest.ap is None or 0 <= manifest.ap <= 1, "a value in 0–1 or null"),
        *((f"inputs.{name}_min", low >= 1, "at least 1") for name, (low, _) in ranges.items()),
        *((f"inputs.{name}_max", high >= low, f"at least {name}_min") for name, (low, high) in ranges.items()),
    ]
    for name, holds, expected in rules:
        if not holds:
            raise ManifestError(f"{source}: manifest field {name!r} makes no sense, expected {expected}; {_REBUILD}")
