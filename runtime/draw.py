"""Draws detections and ground truth into images."""

from __future__ import annotations

import colorsys
import math
from collections.abc import Sequence

import cv2
import numpy as np

from .detections import Detections
from .lettering import draw_text, look_for
from .terminal import printable

_FAR = 1e6  # px
_PX, _LEAST_PX = 30, 13  # height of fonts' letters, at scale 1 and at least
_FONT = cv2.FONT_HERSHEY_SIMPLEX
_GOLDEN_ANGLE = 0.61803398875  # of the colour wheel: neighbouring classes get colours far apart


def class_color(label: int) -> tuple[int, int, int]:
    """RGB colour of a class index, the same everywhere."""
    red, green, blue = colorsys.hsv_to_rgb(label * _GOLDEN_ANGLE % 1.0, 0.85, 1.0 if label % 2 else 0.85)
    return round(red * 255), round(green * 255), round(blue * 255)


def draw(image: np.ndarray, detections: Detections, classes: Sequence[str], min_score: float = 0.0) -> np.ndarray:
    """A copy of the image (uint8 [h, w, 3] RGB) with boxes, classes and scores of detections from `min_score` on."""
    canvas = image.copy()
    look_for(printable("".join(classes)))
    for row in np.flatnonzero(detections.scores >= min_score)[::-1]:  # best last, on top
        label = int(detections.classes[row])
        _draw_box(canvas, detections.boxes[row], class_color(label), f"{classes[label]} {detections.scores[row]:.2f}")
    return canvas


def draw_truth(image: np.ndarray, boxes: np.ndarray, labels: np.ndarray, classes: Sequence[str]) -> np.ndarray:
    """A copy of the image with ground-truth boxes [n, 4] xyxy and their class names; labels [n] are class indices."""
    canvas = image.copy()
    look_for(printable("".join(classes)))
    for box, label in zip(boxes, labels, strict=True):
        _draw_box(canvas, box, class_color(int(label)), classes[int(label)])
    return canvas


def draw_side_by_side(
    image: np.ndarray,
    detections: Detections,
    boxes: np.ndarray,
    labels: np.ndarray,
    classes: Sequence[str],
    min_score: float = 0.3,
) -> np.ndarray:
    """Detections on the left, ground truth (boxes [n, 4] xyxy, labels [n]) on the right, a heading over each."""
    panels = (
        _with_heading(draw(image, detections, classes, min_score), f"detected, score >= {min_score:.2f}"),
        _with_heading(draw_truth(image, boxes, labels, classes), "annotated"),
    )
    gap = np.full((panels[0].shape[0], 4, 3), 255, np.uint8)
    return np.hstack([panels[0], gap, panels[1]])


def encode_jpeg(image: np.ndarray, quality: int = 92) -> bytes:
    """JPEG bytes of an image (uint8 [h, w, 3] RGB)."""
    _, data = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality])
    return data.tobytes()


def _draw_box(canvas: np.ndarray, box: np.ndarray, color: tuple[int, int, int], text: str) -> None:
    corners = box.tolist()
    if any(map(math.isnan, corners)):
        return  # there is no place to draw it
    height, width = canvas.shape[:2]
    thickness = max(1, round(min(height, width) / 300))
    # An edge far outside stays outside; OpenCV takes no larger coordinates than int32's.
    left_x, top_y, right_x, bottom_y = (min(max(side, -_FAR), _FAR) for side in corners)
    # Pixel i covers [i, i + 1): the last pixel inside an edge at x2 is x2 − 1.
    x1, y1 = math.floor(left_x), math.floor(top_y)
    x2, y2 = max(x1, math.ceil(right_x) - 1), max(y1, math.ceil(bottom_y) - 1)
    cv2.rectangle(canvas, (x1, y1), (x2, y2), color, thickness)
    scale = max(0.35, min(height, width) / 1000)
    is_bright = 0.299 * color[0] + 0.587 * color[1] + 0.114 * color[2] > 140
    ink = (0, 0, 0) if is_bright else (255, 255, 255)
    text = printable(text)
    if text.isascii():
        (text_w, text_h), base = cv2.getTextSize(text, _FONT, scale, 1)
    else:
        letters, text_h = draw_text(text, max(_LEAST_PX, round(_PX * scale)), ink, color)
        text_w, base = letters.shape[1], len(letters) - text_h
    left = max(0, min(x1, width - text_w))
    bottom = max(y1, text_h + base)  # above the box, or inside where there is no room above
    top = bottom - text_h - base
    if text.isascii():
        cv2.rectangle(canvas, (left, top), (left + text_w, bottom), color, cv2.FILLED)
        cv2.putText(canvas, text, (left, bottom - base // 2 - 1), _FONT, scale, ink, 1, cv2.LINE_AA)
    else:
        under = canvas[top:bottom, left : left + text_w]  # less than the text where it reaches outside
        under[:] = letters[: under.shape[0], : under.shape[1]]


def _with_heading(image: np.ndarray, text: str) -> np.ndarray:
    heading = np.full((22, image.shape[1], 3), 255, np.uint8)
    cv2.putText(heading, text, (4, 15), _FONT, 0.45, (0, 0, 0), 1, cv2.LINE_AA)
    return np.vstack([heading, image])
