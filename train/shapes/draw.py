"""Drawing of one image of the built-in data set: background, objects, camera noise.

Every random number comes from the generator that is passed in, so an image depends on its seed and on nothing else.
"""

from dataclasses import dataclass

import cv2
import numpy as np

from .outlines import CATEGORIES, Outline, extent, place, random_outline

MIN_SIDE_PX = 8  # longer side of the smallest objects
MAX_SIDE_FRACTION = 0.6  # longer side of the largest, of the image's shorter side
MAX_OBJECTS = 12
EMPTY_FRACTION = 0.05
MIN_INSIDE = 0.65  # fraction of an object's mask that must lie inside the image
MIN_VISIBLE = 0.3  # fraction of an object's mask that later objects must leave visible
CROWDED_FRACTION = 0.35  # fraction of objects that may cover others
_PLACEMENTS = 8
_FINE = 4  # samples per pixel and axis; a shape's coverage is their mean
_MIN_CONTRAST = 70.0  # in grey levels, of the channel that differs most


@dataclass(frozen=True)
class DrawnObject:
    """A drawn object. `mask` bool [h, w] starts at column x, row y of the image and ignores later objects."""

    label: int
    outline: Outline
    x: int
    y: int
    mask: np.ndarray

    @property
    def box_xyxy(self) -> tuple[int, int, int, int]:
        """The tight box of the mask, inside the image; later objects may hide a part of it."""
        return self.x, self.y, self.x + self.mask.shape[1], self.y + self.mask.shape[0]

    @property
    def area(self) -> int:
        """The number of pixels of the mask."""
        return int(np.count_nonzero(self.mask))


def draw_image(rng: np.random.Generator, size: int) -> tuple[np.ndarray, list[DrawnObject]]:
    """Draw an image whose longer side is `size` px: RGB uint8 [H, W, 3], and its objects, the rearmost first."""
    short = size * 3 // 4
    height, width = ((size, size), (short, size), (size, short))[rng.integers(3)]
    image = _background(rng, height, width)
    objects: list[DrawnObject] = []
    if rng.random() >= EMPTY_FRACTION:
        owner = np.zeros(
            (height, width), np.int32
        )  # the object that is visible at a pixel: k + 1 for the k-th, 0 for none
        for _ in range(rng.integers(1, MAX_OBJECTS + 1)):
            drawn = _find_room(rng, owner, objects)
            if drawn is None:
                continue
            objects.append(drawn)
            x0, y0, x1, y1 = drawn.box_xyxy
            owner[y0:y1, x0:x1][drawn.mask] = len(objects)
            _paint(rng, image, drawn)
    return _photograph(rng, image), objects


def render(outline: Outline, height: int, width: int) -> tuple[int, int, np.ndarray]:
    """Coverage uint8 [h, w] (255 = whole pixel) of an outline inside an image of height × width, from (x, y) on.

    The outline must overlap the image.
    """
    low, high = extent(outline)
    x0, y0 = (int(v) for v in np.maximum(np.floor(low) - 1, 0))
    x1, y1 = (int(v) for v in np.minimum(np.ceil(high) + 1, (width, height)))
    canvas = np.zeros(((y1 - y0) * _FINE, (x1 - x0) * _FINE), np.uint8)
    for part in outline:
        # 4 fractional bits; OpenCV's pixel centres are at integers, ours at halves.
        points = [np.rint(((c - (x0, y0)) * _FINE - 0.5) * 16).astype(np.int32) for c in part]
        layer = np.zeros_like(canvas)
        cv2.fillPoly(layer, points, 255, lineType=cv2.LINE_8, shift=4)
        # fillPoly draws the border too, half of which lies outside: without this, shapes are half a sample too large.
        cv2.polylines(layer, points, True, 128, 1, cv2.LINE_8, 4)
        cv2.max(canvas, layer, canvas)
    return x0, y0, cv2.resize(canvas, (x1 - x0, y1 - y0), interpolation=cv2.INTER_AREA)


def _find_room(rng: np.random.Generator, owner: np.ndarray, objects: list[DrawnObject]) -> DrawnObject | None:
    """A random object at a random place where it leaves enough of the others visible; None after a few attempts."""
    height, width = owner.shape
    label = int(rng.integers(len(CATEGORIES)))
    shape = random_outline(label, rng)
    limit = MAX_SIDE_FRACTION * min(height, width)
    # Log-uniform, shifted to larger sizes: otherwise half of all objects would be too small to recognise.
    longer = MIN_SIDE_PX * (limit / MIN_SIDE_PX) ** (rng.random() ** 0.75)
    may_cover = rng.random() < CROWDED_FRACTION
    for _ in range(_PLACEMENTS):
        margin = longer * rng.choice([0.5, 0.25], p=[0.85, 0.15])  # some objects extend beyond the image
        centre = (float(rng.uniform(margin, width - margin)), float(rng.uniform(margin, height - margin)))
        outline = place(shape, float(rng.uniform(0, 2 * np.pi)), longer, centre)
        drawn = cut_to_mask(label, outline, height, width)
        if drawn is None or not MIN_SIDE_PX <= max(drawn.mask.shape) <= limit:
            continue
        if _leaves_visible(drawn, owner, objects, MIN_VISIBLE if may_cover else 1.0):
            return drawn
        longer = max(MIN_SIDE_PX, longer * 0.85)  # there may be room for a smaller object
    return None


def cut_to_mask(label: int, outline: Outline, height: int, width: int) -> DrawnObject | None:
    """The part of an outline inside an image of height × width; None if it is less than MIN_INSIDE of the whole."""
    x, y, coverage = render(outline, height, width)
    mask = coverage >= 128
    columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
    if not len(columns):
        return None
    low, high = extent(outline)
    if low.min() < 0 or high[0] > width or high[1] > height:
        shift = np.ceil(np.maximum(-low, 0)).astype(np.float32)
        whole_width, whole_height = (int(v) + 2 for v in high + shift)
        _, _, whole = render([[c + shift for c in part] for part in outline], whole_height, whole_width)
        if np.count_nonzero(mask) < MIN_INSIDE * np.count_nonzero(whole >= 128):
            return None
    tight = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return DrawnObject(label, outline, x + int(columns[0]), y + int(rows[0]), tight)


def _leaves_visible(drawn: DrawnObject, owner: np.ndarray, objects: list[DrawnObject], fraction: float) -> bool:
    """Whether at least `fraction` of the mask of every earlier object stays visible under `drawn`."""
    x0, y0, x1, y1 = drawn.box_xyxy
    covered = np.bincount(owner[y0:y1, x0:x1][drawn.mask], minlength=len(objects) + 1)[1:]
    for index in np.flatnonzero(covered):
        visible = np.count_nonzero(owner == index + 1) - covered[index]
        if visible < fraction * objects[index].area:
            return False
    return True


def _paint(rng: np.random.Generator, image: np.ndarray, drawn: DrawnObject) -> None:
    """Paint the object onto the image (uint8, changed in place): a fill, sometimes an outline, soft edges."""
    x, y, coverage = render(drawn.outline, *image.shape[:2])
    height, width = coverage.shape
    behind = image[y : y + height, x : x + width]
    rows, columns = np.divmod(_thin_out(np.flatnonzero(coverage >= 128)), width)
    colour = _contrasting_colour(rng, behind[rows, columns])
    fill = _fill(rng, colour, height, width)
    if max(height, width) >= 24 and rng.random() < 0.35:
        edge = cv2.erode(coverage, np.ones((3, 3), np.uint8), borderType=cv2.BORDER_REPLICATE)
        rim = _contrasting_colour(rng, colour[None])
        fill += _three(1 - edge.astype(np.float32) / 255) * (rim - fill)
    alpha: np.ndarray = coverage.astype(np.float32)
    if rng.random() < 0.25 and max(height, width) >= 16:
        alpha = cv2.GaussianBlur(alpha, (0, 0), float(rng.uniform(0.5, 1.0)), borderType=cv2.BORDER_REPLICATE)
    image[y : y + height, x : x + width] = cv2.add(_three(alpha / 255) * (fill - behind), behind, dtype=cv2.CV_8U)


def _thin_out(values: np.ndarray) -> np.ndarray:
    """About 64 of the values, evenly spaced."""
    return values[:: max(1, len(values) // 64)]


def _contrasting_colour(rng: np.random.Generator, pixels: np.ndarray) -> np.ndarray:
    """A colour float32 [3] that differs from most of the pixels [n, 3] in at least one channel."""
    sample = pixels.astype(np.float32)
    candidates = rng.integers(0, 256, (12, 3)).astype(np.float32)
    difference = np.abs(candidates[:, None] - sample[None]).max(axis=2)
    contrast = np.sort(difference, axis=1)[:, len(sample) // 5]
    enough = np.flatnonzero(contrast >= _MIN_CONTRAST)
    return candidates[enough[0] if len(enough) else contrast.argmax()]


def _fill(rng: np.random.Generator, colour: np.ndarray, height: int, width: int) -> np.ndarray:
    """Float32 [h, w, 3] around `colour`: flat, a gradient, stripes or mottled."""
    kind = rng.integers(4)
    if kind == 0:
        field = np.zeros((height, width), np.float32)
    elif kind == 1:
        field = _ramp(float(rng.uniform(0, 2 * np.pi)), height, width) * 2
    elif kind == 2:
        period = float(rng.uniform(4, 12))
        field = np.sin(
            _ramp(float(rng.uniform(0, np.pi)), height, width) * float(max(height, width) * 2 * np.pi / period)
        )
    else:
        field = _smooth_noise(rng, height, width, float(rng.uniform(2, 8)))
    # The tint stays below the contrast between the colour and the background.
    return colour + _three(field) * rng.uniform(-0.4, 0.4, 3).astype(np.float32) * _MIN_CONTRAST


def _background(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Uint8 [h, w, 3]: a texture between two colours, lit unevenly, with unlabelled clutter."""
    first = rng.uniform(20, 235, 3)
    first += rng.random() * (first.mean() - first)  # mostly muted colours
    towards = rng.normal(0, rng.uniform(10, 45), 3)
    tint = _smooth_noise(rng, height, width, float(rng.uniform(24, 120)), channels=3) * float(rng.uniform(0, 22))
    tint += first.astype(np.float32)
    image = cv2.add(_three(_texture(rng, height, width)) * towards.astype(np.float32), tint, dtype=cv2.CV_8U)
    _scribble(rng, image)
    return image


def _texture(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Float32 [h, w], roughly −1 … 1: clouds, fibres, stripes, tiles or plain."""
    kind = rng.integers(5)
    if kind == 0:
        scale = float(rng.uniform(20, 90))
        octaves = [_smooth_noise(rng, height, width, scale / 3**k) / 1.6**k for k in range(3)]
        return octaves[0] + octaves[1] + octaves[2]
    if kind == 1:
        grain = rng.uniform(2, 4), rng.uniform(20, 80)
        return _smooth_noise(rng, height, width, *(grain if rng.random() < 0.5 else grain[::-1]))
    if kind == 2:
        phase = _ramp(float(rng.uniform(0, np.pi)), height, width) * float(max(height, width) / rng.uniform(1.5, 9))
        wave = np.sin(phase + _smooth_noise(rng, height, width, 60.0) * float(rng.uniform(0, 1.5)))
        return np.clip(wave * float(rng.uniform(1, 4)), -1, 1)
    if kind == 3:
        tile = rng.uniform(10, 48)
        grid = rng.uniform(-1, 1, (int(height / tile) + 1, int(width / tile) + 1)).astype(np.float32)
        return cv2.resize(grid, (width, height), interpolation=cv2.INTER_NEAREST)
    return _ramp(float(rng.uniform(0, 2 * np.pi)), height, width) * 2


def _scribble(rng: np.random.Generator, image: np.ndarray) -> None:
    """Draw thin lines and specks that belong to no class, so that not every edge is an object's."""
    height, width = image.shape[:2]
    mean = image.reshape(-1, 3)[::97].mean(axis=0)
    for tone in _tones(rng, mean, 45, int(rng.integers(0, 7))):
        # The curve bends slowly: with sharp corners it would look like a letter.
        heading = rng.uniform(0, 2 * np.pi) + np.cumsum(rng.normal(0, 0.25, 12))
        steps = np.stack([np.cos(heading), np.sin(heading)], axis=1) * rng.uniform(2, 14)
        points = np.rint((rng.uniform(0, (width, height)) + np.cumsum(steps, axis=0)) * 16).astype(np.int32)
        cv2.polylines(image, [points], False, tone, int(rng.integers(1, 3)), cv2.LINE_AA, 4)
    tones = _tones(rng, mean, 55, int(rng.integers(0, 25)))
    spots = rng.integers(0, (width, height, 2), (len(tones), 3)).tolist()
    for tone, (x, y, radius) in zip(tones, spots, strict=True):
        cv2.circle(image, (x, y), radius, tone, -1)


def _tones(rng: np.random.Generator, mean: np.ndarray, spread: float, count: int) -> list[list[float]]:
    """Colours that scatter around `mean` [3]."""
    return np.clip(mean + rng.normal(0, spread, (count, 3)), 0, 255).tolist()


def _photograph(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
    """Add the effects of a camera: uneven light, slight blur, grain. Uint8 in and out."""
    height, width = image.shape[:2]
    light = 1 + _ramp(float(rng.uniform(0, 2 * np.pi)), height, width) * float(rng.uniform(0, 0.5))
    seen = cv2.multiply(image, _three(light), dtype=cv2.CV_32F)
    if rng.random() < 0.25:
        seen = cv2.GaussianBlur(seen, (0, 0), float(rng.uniform(0.4, 0.9)))
    grain = _white_noise(rng, (height, width)) * float(rng.uniform(1, 9))
    colour_grain = _white_noise(rng, (height // 2, width // 2, 3)) * float(rng.uniform(0.5, 6))
    seen += _three(grain)
    return cv2.add(seen, cv2.resize(colour_grain, (width, height), interpolation=cv2.INTER_LINEAR), dtype=cv2.CV_8U)


def _white_noise(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Float32 of mean 0 and deviation 1: sums of two random bytes, several times as fast as a normal distribution."""
    first, second = rng.integers(0, 256, (2, *shape), np.uint8)
    return (cv2.add(first, second, dtype=cv2.CV_32F) - 255) * np.float32(6**0.5 / 256)


def _three(field: np.ndarray) -> np.ndarray:
    """[h, w] → [h, w, 3], three equal channels (much faster than broadcasting over a last axis of 3)."""
    return cv2.cvtColor(field, cv2.COLOR_GRAY2RGB)


def _ramp(angle: float, height: int, width: int) -> np.ndarray:
    """Float32 [h, w], a plane rising in direction `angle`, about −0.5 … 0.5, 0 in the middle."""
    longer = max(height, width)
    x = (np.arange(width, dtype=np.float32) - width / 2) * np.float32(np.cos(angle) / longer)
    y = (np.arange(height, dtype=np.float32) - height / 2) * np.float32(np.sin(angle) / longer)
    return y[:, None] + x[None]


def _smooth_noise(
    rng: np.random.Generator, height: int, width: int, cell_h: float, cell_w: float | None = None, channels: int = 1
) -> np.ndarray:
    """Float32 [h, w] (or [h, w, channels]) in about −1 … 1 that varies over cells of `cell_h` × `cell_w` px."""
    rows, columns = int(height / cell_h) + 2, int(width / (cell_w or cell_h)) + 2
    coarse = rng.uniform(-1, 1, (rows, columns, channels)).astype(np.float32)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_LINEAR)
