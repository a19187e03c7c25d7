"""A report's content with made-up figures, of any number of classes, images and models."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from runtime.coco import METRIC_NAMES
from runtime.report import content as c

CHANGES: tuple[c.ChangeKind | None, ...] = (None, None, None, None, "rescored", "moved", "gained")
KINDS: tuple[c.Kind, ...] = ("correct",) * 6 + ("class", "localisation", "both", "duplicate", "background", "ignored")


def report_content(
    folder: Path | None,
    classes: int = 4,
    images: int = 6,
    models: int = 2,
    *,
    files: int = 6,
    names: tuple[str, ...] = (),
    seed: int = 0,
) -> c.ReportContent:
    """A whole report. `files` images are drawn into `folder` and used in turn; None: there are no files.

    `names` replace the names of the first classes, and of the images, models and the run too.
    """
    rng = np.random.default_rng(seed)
    words = tuple(names[i] if i < len(names) else f"class {i}" for i in range(classes))
    paths = [] if folder is None else [_image(folder / f"{i}.jpg", rng) for i in range(files)]
    labels = [names[i] if i < len(names) else ("fp32", "int8", "fp16", "engine")[i] for i in range(models)]
    return c.ReportContent(
        title=f"Report of {labels[0]}",
        made="2026-01-02 03:04",
        toolkit="atss-toolkit 0.1.0",
        command="python -m runtime.report model.onnx --annotations val.json --images val -o report.html",
        min_score=0.3,
        resamples=1000,
        data=_data(words, images, rng),
        models=tuple(_model(index, label, words, rng) for index, label in enumerate(labels)),
        images=tuple(
            _shown(names[i] if i < len(names) else f"{i:06}.jpg", paths, classes, models, rng) for i in range(images)
        ),
        runs=(_run(names[0] if names else "runs/quickstart/train", rng),),
    )


def _image(path: Path, rng: np.random.Generator) -> Path:
    """A picture of 640 × 480 with smooth noise, as large in JPEG as a photograph."""
    small = rng.integers(60, 200, (6, 8, 3), dtype=np.uint8)
    pixels = cv2.resize(small, (640, 480), interpolation=cv2.INTER_CUBIC).astype(int)
    pixels = np.clip(pixels + rng.integers(-9, 9, pixels.shape), 0, 255).astype(np.uint8)
    assert cv2.imwrite(str(path), pixels)
    return path


def _data(words: tuple[str, ...], images: int, rng: np.random.Generator) -> c.DataContent:
    counts = rng.integers(5, 400, len(words))
    shapes = (("under 1:2", "1:2 to 2:1", "over 2:1"), [30, 400, 70], [300, 3600, 800])
    return c.DataContent(
        annotations="val.json",
        images=images,
        objects=int(counts.sum()),
        classes=words,
        counts=(
            c.CountTable("class", words, counts, counts * 7),
            c.CountTable("size (COCO)", ("small", "medium", "large"), [100, 200, 200], [900, 1900, 1800]),
            c.CountTable("aspect ratio", *shapes),
        ),
        problems=("2 annotations outside their image, left out",),
    )


def _interval(value: float, half: float) -> c.Interval:
    return c.Interval(value, max(0.0, value - half), min(1.0, value + half))


def _model(index: int, label: str, words: tuple[str, ...], rng: np.random.Generator) -> c.ModelContent:
    count, ap = len(words), 0.48 - 0.012 * index
    metrics = {name: _interval(ap + 0.03 * place % 0.3, 0.03) for place, name in enumerate(METRIC_NAMES)}
    per_class = {word: _interval(float(rng.uniform(0.2, 0.8)), 0.06) for word in words}
    per_class[words[-1]] = c.Interval(-1) if count > 3 else per_class[words[-1]]
    difference = {name: c.Interval(-0.012, -0.02, -0.004 if index == 1 else 0.01) for name in METRIC_NAMES}
    return c.ModelContent(
        name=label,
        file=f"models/{label}.onnx",
        facts={"precision": label, "backend": "ONNX Runtime, CPU"},
        metrics=metrics,
        per_class=per_class,
        detections=54_321,
        difference=difference if index else None,
        per_class_difference={word: c.Interval(-0.01, -0.03, 0.02) for word in words} if index else None,
        curves=_curves(count, rng),
        f1=_f1(),
        f1_per_class={word: _f1() for word in words},
        reliability=_reliability(),
        confusion=c.Confusion(rng.poisson(2, (count + 1, count + 1)) + np.diag(rng.integers(20, 90, count + 1))),
        errors={
            kind: c.KindOfError(int(rng.integers(1, 900)), float(gain) / 2, float(gain), rng.integers(0, 90, count))
            for kind, gain in zip(c.ERROR_KINDS, (0.012, 0.061, 0.003, 0.002, 0.024, 0.091), strict=True)
        },
        changes=c.Changes(
            {"gained": 12, "lost": 19, "moved": 44, "rescored": 130},
            {kind: rng.integers(0, 9, count) for kind in c.CHANGE_KINDS},
            images=61,
            unchanged=1200,
            moved_iou=0.943,
            score_shift=-0.0041,
        )
        if index
        else None,
        speed=c.SpeedFacts(
            (c.StageTime("decode", 3.1, 3.9), c.StageTime("preprocess", 1.2, 1.4), c.StageTime("infer", 41.0, 44.5)),
            21.9,
            {"processor": "AMD EPYC", "batch": "8"},
        ),
        manifest={"version": 1, "classes": list(words), "precision": label, "preprocess": {"short_side": 320}},
        problems=("3 results of a category that the annotations lack, left out",) if index else (),
    )


def _curves(count: int, rng: np.random.Generator) -> c.PrecisionCurves:
    recalls, ious = np.linspace(0, 1, 101), np.linspace(0.5, 0.95, 10)
    reach = np.clip(1.15 - ious[:, None, None] + rng.uniform(-0.15, 0.25, (1, 1, count)), 0.02, 1)
    noise = np.minimum.accumulate(rng.uniform(0.93, 1, (10, 101, count)), 1)
    precision = np.where(recalls[:, None] < reach, (1 - (recalls[:, None] / reach) ** 3 * 0.7) * noise, 0)
    if count > 3:
        precision[:, :, -1] = -1
    return c.PrecisionCurves(tuple(ious.tolist()), precision)


def _f1() -> c.ScoreCurve:
    scores = np.linspace(0.05, 0.95, 400).round(4)  # a threshold of four digits is best
    precision, recall = 0.3 + 0.68 * scores**0.6, 0.95 * (1 - scores**2.2)
    f1 = 2 * precision * recall / (precision + recall)
    best = int(np.argmax(f1))
    return c.ScoreCurve(scores, precision, recall, f1, float(scores[best]), float(f1[best]))


def _reliability() -> c.Reliability:
    edges = np.linspace(0, 1, 16)
    middle = (edges[1:] + edges[:-1]) / 2
    hits, misses = (400 * middle).astype(int), (6000 * np.exp(-9 * middle)).astype(int)
    empty = middle < 0.1
    hits[empty] = misses[empty] = 0
    return c.Reliability(edges, hits, misses, np.where(empty, -1, middle), np.where(empty, -1, middle**1.4), 0.081)


def _shown(name: str, paths: list[Path], classes: int, models: int, rng: np.random.Generator) -> c.ImageContent:
    truth = tuple(
        c.TruthBox(
            _box(rng),
            int(rng.integers(classes)),
            region=place == 3,
            found_at=tuple(float(s) for s in rng.choice([0, 0.25, 0.6, 0.9], models)),
        )
        for place in range(5)
    )
    found = []
    for model in range(models):
        length = 1 if model else max(1, models - 1)
        several = models > 1
        found.append(
            tuple(
                c.DetectedBox(
                    _box(rng),
                    int(rng.integers(classes)),
                    float(rng.uniform(0.05, 1)),
                    KINDS[rng.integers(len(KINDS))],
                    tuple(CHANGES[rng.integers(len(CHANGES))] for _ in range(length)) if several else (),
                )
                for _ in range(6)
            )
        )
    path = paths[int(rng.integers(len(paths)))] if paths else None
    return c.ImageContent(
        name, path, (480, 640), truth, tuple(found), float(rng.uniform(0, 9)), float(rng.uniform(0, 5)) * (models > 1)
    )


def _box(rng: np.random.Generator) -> tuple[float, float, float, float]:
    x, y = float(rng.uniform(0, 500)), float(rng.uniform(0, 380))
    return x, y, x + float(rng.uniform(20, 140)), y + float(rng.uniform(20, 100))


def _run(folder: str, rng: np.random.Generator) -> c.RunContent:
    steps = np.arange(20, 2001, 20)
    fall = 2.4 * np.exp(-steps / 700) + 0.6 + rng.normal(0, 0.05, len(steps))
    checks = np.arange(200, 2001, 200)
    return c.RunContent(
        folder,
        (
            c.Series("total", steps, fall),
            c.Series("classification", steps, 0.4 * fall),
            c.Series("box", steps, fall / 3),
        ),
        (c.Series("AP", checks, 0.48 * (1 - np.exp(-checks / 600))), c.Series("AP50", checks, 0.7 - 100 / checks)),
        {
            "schedule": {"steps": 2000, "lr": 0.001},
            "model": {"backbone": "resnet50"},
            "classes": ["a", "b"],
            "seed": None,
        },
        {"steps": "2,000", "device": "cpu"},
    )
