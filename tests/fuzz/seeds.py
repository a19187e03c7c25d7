"""The valid inputs that are mutated: small files of every kind, made once into a folder."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import struct
from pathlib import Path

import cv2
import numpy as np

from ..support.fakes import MANIFEST, red_image, write_red_onnx

SIZES_HW = ((60, 80), (48, 64), (72, 56))
CLASSES = ("red", "other")
SEED = 7


def annotations() -> dict:
    """A small data set: three images, two classes, a crowd, a group with an outline."""
    images = [
        {"id": 10 + i, "file_name": f"{i}.jpg" if i < 2 else f"{i}.png", "height": h, "width": w}
        for i, (h, w) in enumerate(SIZES_HW)
    ]
    rng = np.random.default_rng(SEED)
    boxes = [[*rng.integers(0, 20, 2).tolist(), *rng.integers(8, 30, 2).tolist()] for _ in range(9)]
    objects = [
        {
            "id": 1 + i,
            "image_id": 10 + i % 3,
            "category_id": (7, 9)[i % 2],
            "bbox": [float(v) for v in box],
            "area": float(box[2] * box[3]),
            "iscrowd": int(i == 4),
            "segmentation": [[box[0], box[1], box[0] + box[2], box[1], box[0] + box[2], box[1] + box[3]]],
        }
        for i, box in enumerate(boxes)
    ]
    kinds = [{"id": 7, "name": "red", "supercategory": "thing"}, {"id": 9, "name": "other", "supercategory": "thing"}]
    return {
        "info": {"year": 2026},
        "licenses": [],
        "images": images,
        "annotations": objects,
        "categories": kinds,
    }


def results() -> list[dict]:
    """Detections near the objects, of varied scores."""
    rng = np.random.default_rng(SEED)
    return [
        {
            "image_id": one["image_id"],
            "category_id": one["category_id"],
            "bbox": [round(float(v + d), 3) for v, d in zip(one["bbox"], rng.normal(0, 1.5, 4), strict=True)],
            "score": round(float(rng.uniform(0.1, 1)), 6),
        }
        for one in annotations()["annotations"]
    ]


def make_seeds(folder: Path) -> None:
    """Write all valid inputs into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    _write_data(folder)
    _write_pictures(folder)
    _write_videos(folder)
    _write_models(folder)
    _write_records(folder)


def _write_data(folder: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    from runtime.coco import parse_results
    from runtime.coco.results_parquet import write_parquet

    (folder / "annotations.json").write_text(json.dumps(annotations()))
    (folder / "results.json").write_text(json.dumps(results()))
    write_parquet(folder / "results.parquet", parse_results(results(), "seed"))
    pictures = folder / "images"
    pictures.mkdir(exist_ok=True)
    rng = np.random.default_rng(SEED)
    for i, (height, width) in enumerate(SIZES_HW):
        image = red_image(height, width, (8, 12, width - 8, height - 4))
        image = np.clip(image + rng.normal(0, 6, image.shape), 0, 255).astype(np.uint8)
        cv2.imwrite(str(pictures / annotations()["images"][i]["file_name"]), image[..., ::-1])
    files = sorted(pictures.iterdir())
    table = {"path": [path.name for path in files], "bytes": [path.read_bytes() for path in files]}
    parquet.write_table(pyarrow.table(table), folder / "images.parquet")
    (folder / "list.txt").write_text("".join(f"images/{path.name}\n" for path in files))
    digest = hashlib.sha256((folder / "annotations.json").read_bytes()).hexdigest()
    for index in range(2):
        kept = [10, 12] if index == 0 else [11]
        head = {
            "version": 1,
            "index": index,
            "count": 2,
            "artifact": "model.onnx",
            "backend": "fake",
            "origin": {
                "artifact_sha256": "0" * 64,
                "annotations_sha256": digest,
                "batch": 2,
                "limit": None,
                "scales": [],
                "flip": False,
                "vote": False,
                "max_pixels": 64_000_000,
            },
            "seconds": 1.5,
            "seconds_network": 1.0,
            "skipped": [],
            "image_ids": kept,
        }
        part = {"shard": head, "results": [one for one in results() if one["image_id"] in kept]}
        (folder / f"part{index}.json").write_text(json.dumps(part))


def _write_pictures(folder: Path) -> None:
    pictures = folder / "pictures"
    pictures.mkdir(exist_ok=True)
    image = cv2.imread(str(folder / "images" / "0.jpg"))
    assert image is not None
    cv2.imwrite(str(pictures / "plain.jpg"), image, [cv2.IMWRITE_JPEG_QUALITY, 80])
    cv2.imwrite(str(pictures / "progressive.jpg"), image, [cv2.IMWRITE_JPEG_PROGRESSIVE, 1])
    cv2.imwrite(str(pictures / "restarts.jpg"), image, [cv2.IMWRITE_JPEG_RST_INTERVAL, 2])
    cv2.imwrite(str(pictures / "grey.jpg"), image[..., 0])
    cv2.imwrite(str(pictures / "plain.png"), image)
    cv2.imwrite(str(pictures / "alpha.png"), np.dstack([image, image[..., :1]]))
    cv2.imwrite(str(pictures / "grey16.png"), image[..., 0].astype(np.uint16) * 257)
    cv2.imwrite(str(pictures / "plain.bmp"), image)
    cv2.imwrite(str(pictures / "plain.tif"), image)
    cv2.imwrite(str(pictures / "lossless.webp"), image, [cv2.IMWRITE_WEBP_QUALITY, 101])
    cv2.imwrite(str(pictures / "lossy.webp"), image, [cv2.IMWRITE_WEBP_QUALITY, 80])


def _write_videos(folder: Path) -> None:
    image = cv2.imread(str(folder / "images" / "0.jpg"))
    assert image is not None
    for name, code in (("film.mp4", "mp4v"), ("film.avi", "MJPG")):
        writer = cv2.VideoWriter(str(folder / name), cv2.VideoWriter.fourcc(*code), 10.0, (80, 60))
        for shift in range(6):
            writer.write(np.roll(image, 4 * shift, axis=1))
        writer.release()


def _write_models(folder: Path) -> None:
    """A detector with random weights as checkpoint and ONNX file, and the finder of red rectangles as ONNX file."""
    import onnx

    from export.graph.checkpoint import checkpoint_to_graph
    from export.graph.shapes import input_shapes
    from export.onnx_model.file import graph_sha256
    from runtime.manifest import Preprocess, Thresholds
    from train.checkpoint import Checkpoint, Classes, load_detector, save_checkpoint
    from train.config import Config
    from train.pretrained import dialects

    from ..support.systems import narrowed, saved

    model = narrowed(dialects.AUTHORS_ATSS.model)
    model = dataclasses.replace(model, pyramid=dataclasses.replace(model.pyramid, levels=3))
    pre = Preprocess(short_side=64, long_side=96)
    path, classes = folder / "checkpoint.pt", Classes(("red", "other", "third"), (7, 9, 11))
    state = saved(model, Thresholds(), pre, path).detector.state_dict()
    settings = Config(recipe="test", preprocess=pre, model=model)
    save_checkpoint(path, Checkpoint(settings, classes, 1, state, None, {}, {}, 0.25, 0.25))
    loaded = load_detector(path)
    (folder / "model.onnx").write_bytes(checkpoint_to_graph(loaded, input_shapes(pre, 3)))
    digest = graph_sha256(onnx.load(write_red_onnx(folder / "red.onnx")))
    write_red_onnx(folder / "red.onnx", dataclasses.replace(MANIFEST, graph_sha256=digest))


def _write_records(folder: Path) -> None:
    import onnx

    from export.calibration import CALIBRATION_VERSION
    from runtime.backends.engine_file import EngineManifest, Profile, Tensor, this_platform, write_engine
    from runtime.decoders import Measured
    from runtime.manifest import METADATA_KEY, from_json

    model = onnx.load(folder / "model.onnx")
    text = next(entry.value for entry in model.metadata_props if entry.key == METADATA_KEY)
    manifest = from_json(text, "seed")
    (folder / "manifest.json").write_text(text)
    # The header of an engine of TensorRT for RTX 1.7 for two kinds of GPU, and bytes that are no engine behind it.
    engine = struct.pack("<4s12xQ4B4xI", b"vtrt", 292, 1, 7, 1, 116, 6) + bytes(range(256))
    described = EngineManifest(
        manifest=manifest,
        flavor="rtx",
        library_version="1.7.1.116",
        compute_capabilities=("8.0", "8.6"),
        platform=this_platform(),
        engine_sha256=hashlib.sha256(engine).hexdigest(),
        onnx_sha256="2" * 64,
        profiles=(Profile((1, 32, 32), (2, 64, 64), (3, 96, 96)),),
        tensors=(Tensor("images", "input", "uint8", (-1, -1, -1, 3)), Tensor("nms_exact", "output", "int32", (-1, 1))),
        rebuild="python -m export.to_trt model.onnx",
        layers={"fp32": 3},
    )
    write_engine(folder / "model.engine", engine, described)
    values = {"a": [-1.0, 2.0], "b": [0.0, 6.0]}
    calibration = {
        "graph_sha256": manifest.graph_sha256,
        "images_sha256": "0" * 64,
        "images": 3,
        "skipped": ["a.jpg: damaged"],
        "ranges": dict.fromkeys(("max", "mse", "percentile"), values),
        "means": {"a": [0.5, 0.25]},
        "version": CALIBRATION_VERSION,
    }
    (folder / "calibration.json").write_text(json.dumps(calibration))
    note = Measured("nvimgcodec", "0.9", "cpu", manifest.graph_sha256, 12, 0.41, 0.409)
    (folder / "decoders.json").write_text(json.dumps({"measured": [dataclasses.asdict(note)]}))
