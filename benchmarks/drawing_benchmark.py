"""What drawing costs beside the same boxes with OpenCV's own letters: `python -m benchmarks.drawing_benchmark`.

Each round draws the same detections once in each way, in one process, on an image of 1280 × 720 px. The ratio is the
median over the rounds of processor time. A video shows the same names again and again, with other scores.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

import cv2
import numpy as np

from runtime.detections import Detections
from runtime.draw import class_color, draw

ROUNDS, PER_ROUND, OBJECTS = 40, 10, 20
NAMES = {
    "ASCII": [f"class {number}" for number in range(8)],
    "Latin": ["é", "größe", "łódź", "ağaç", "ñandú", "œuf", "šála", "æble"],
    "Cyrillic": ["кошка", "собака", "птица", "дом", "лодка", "дерево", "стол", "стул"],
    "Chinese": ["猫", "犬", "鸟", "房子", "船", "树", "桌子", "椅子"],
}


def plain(image: np.ndarray, found: Detections, names: Sequence[str]) -> np.ndarray:
    """Boxes and texts by OpenCV alone, other letters than ASCII as question marks."""
    canvas = image.copy()
    scale = min(image.shape[:2]) / 1000
    for box, score, label in zip(found.boxes, found.scores, found.classes.tolist(), strict=True):
        color, (x1, y1, x2, y2) = class_color(label), map(int, box)
        text = f"{names[label]} {score:.2f}".encode("ascii", "replace").decode()
        cv2.rectangle(canvas, (x1, y1), (x2, y2), color, 2)
        (width, height), base = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, scale, 1)
        cv2.rectangle(canvas, (x1, y1 - height - base), (x1 + width, y1), color, cv2.FILLED)
        cv2.putText(canvas, text, (x1, y1 - base // 2), cv2.FONT_HERSHEY_SIMPLEX, scale, (0, 0, 0), 1, cv2.LINE_AA)
    return canvas


def main() -> None:
    """Print the ratio of each script."""
    cv2.setNumThreads(1)
    random = np.random.default_rng(0)
    image = random.integers(0, 256, (720, 1280, 3), dtype=np.uint8)

    def detections() -> Detections:
        corners = random.uniform(40, 500, (OBJECTS, 2))
        boxes = np.hstack([corners, corners + random.uniform(20, 200, (OBJECTS, 2))]).astype(np.float32)
        scores = random.uniform(0.3, 1, OBJECTS).astype(np.float32)
        return Detections(boxes, scores, random.integers(0, 8, OBJECTS).astype(np.int32))

    def seconds(way: Callable[..., np.ndarray], given: Sequence[Detections], names: Sequence[str]) -> float:
        began = time.process_time()
        for found in given:
            way(image, found, names)
        return time.process_time() - began

    for script, names in NAMES.items():
        ratios = []
        for _ in range(ROUNDS):
            given = [detections() for _ in range(PER_ROUND)]
            before = seconds(plain, given, names)
            ratios.append(seconds(draw, given, names) / before)
        low, high = np.percentile(ratios, (5, 95))
        print(f"{script:<10} {statistics.median(ratios):.2f} × (5 to 95 %: {low:.2f} to {high:.2f})")


if __name__ == "__main__":
    main()
