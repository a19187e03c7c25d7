"""Writes a folder for DeepStream of an exported file: the model's variant, its labels, and the configurations."""

from __future__ import annotations

import dataclasses
import errno
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from runtime.errors import UserError
from runtime.files import write_error
from runtime.images import MAX_PIXELS
from runtime.images.preprocess import plan
from runtime.manifest import METADATA_KEY, InputShapes, Manifest, from_json
from runtime.names import unknown_name
from runtime.temporaries import temporary_folder

from ..arguments import AnyPath, folder_name, require_libraries
from ..verification.checks import Verification
from .configuration import (
    APP,
    INFER,
    LABELS,
    MODEL,
    Settings,
    app_groups,
    infer_groups,
    key_file,
    label_lines,
)
from .contract import CROPPING_VERSIONS, STRONGLY_TYPED_VERSIONS, Version, box_limits

FRAME_HW = (1080, 1920)  # px, of most cameras
SCORE = 0.3  # that of `runtime.detect`

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class WrittenFolder:
    """A folder for DeepStream. It exists only if the variant passed its verification."""

    path: Path
    manifest: Manifest  # the variant's
    verification: Verification

    @property
    def passed(self) -> bool:
        """Whether the variant passed its verification and the folder was written."""
        return self.verification.passed


def write_deepstream(
    model: AnyPath,
    out: AnyPath,
    *,
    canvas_hw: tuple[int, int] | None = None,
    frame_hw: tuple[int, int] = FRAME_HW,
    batch: int = 1,
    score: float = SCORE,
    version: Version = "9",
    images: AnyPath | None = None,
    max_pixels: int = MAX_PIXELS,
) -> WrittenFolder:
    """Write a folder that DeepStream's nvinfer and `deepstream-app` run as it is. Needs onnx and onnxruntime, no torch.

    The variant is compared with `model` bit by bit before the folder gets its name.

    Args:
        model: file that `export_onnx` or `quantize` wrote, in any precision but an int8 for CPUs.
        out: folder to write, which must not exist.
        canvas_hw: height and width that nvinfer scales frames into; by default the model's own canvas, or else the one
            that this toolkit would lay a frame on.
        frame_hw: size of the frames that reach nvinfer. For 7.1 the model is for frames of this aspect alone.
        batch: frames at a time, as many as there are sources.
        score: the lowest score of a detection.
        version: DeepStream's. Before 9, nvinfer can't build strongly typed engines: build one with `build_engine`.
        images: folder of images to compare on; by default synthetic ones.
        max_pixels: larger images are not read.

    Raises:
        UserError: the file isn't one of this toolkit or is made for CPUs or for DeepStream already, an argument doesn't
            fit it, or `out` exists or can't be written.

    """
    path, folder = Path(model), Path(out)
    match version:
        case "7.1" | "8.0" | "9":
            pass
        case _:
            unknown_name(version, "--deepstream", Version)
    if folder.exists() or folder.is_symlink():
        raise UserError(f"-o {folder}: exists already; name a new folder, or remove that one first")
    if not 0 <= score <= 1 or min(*frame_hw) < 2:
        raise UserError(f"--score {score:g} --frame {frame_hw[0]} {frame_hw[1]}: expected 0 to 1, and 2 px or more")
    require_libraries(("onnx", "onnxruntime"), "a graph is changed and compared with them: pip install {name}")
    from ..onnx_model.network import ModelError, load_deployed
    from ..onnx_model.precision import count_convolutions
    from ..verification.images import load_comparison_images
    from .variant import to_variant
    from .verify import verify_variant

    original, manifest = load_deployed(path)
    if count_convolutions(original)["uint8"]:
        raise ModelError(
            f"{path}: its int8 is for CPUs, which TensorRT lacks; quantize the float32 file with --target tensorrt"
        )
    if not manifest.inputs.batch_min <= batch <= manifest.inputs.batch_max:
        raise UserError(f"--batch {batch}: expected a batch that {path} takes, {manifest.inputs.summary()}")
    labels = label_lines(manifest.classes)
    canvas = canvas_hw or default_canvas(manifest, frame_hw)
    limits = None if version in CROPPING_VERSIONS else box_limits(frame_hw, canvas)
    variant = to_variant(original, manifest, canvas, limits)
    stated = from_json(next(e.value for e in variant.metadata_props if e.key == METADATA_KEY), str(path))
    compared_on = load_comparison_images(folder_name(images), max_pixels=max_pixels)
    verification = Verification(tuple(verify_variant(original, variant, stated, compared_on, limits)))
    logger.info(verification.table)
    if not verification.passed:
        logger.info(f"NOT written: {folder}; the variant's numbers differ from {path.name}'s, please report it")
        return WrittenFolder(folder, stated, verification)
    settings = Settings(version, batch, score, frame_hw)
    comment = (
        f"{manifest.recipe}, {len(manifest.classes)} classes, {manifest.precision}; DeepStream {version}\n"
        f"graph {stated.graph_sha256}"
    )
    if limits is not None:
        comment += f"\nfor frames of {frame_hw[1]}×{frame_hw[0]}: the graph limits boxes to them"
    with new_folder(folder) as temporary:
        (temporary / MODEL).write_bytes(variant.SerializeToString(deterministic=True))
        (temporary / LABELS).write_text(labels, encoding="utf-8")
        (temporary / INFER).write_text(key_file(infer_groups(stated, settings), comment), encoding="utf-8")
        (temporary / APP).write_text(key_file(app_groups(settings), comment), encoding="utf-8")
    logger.info(f"{folder}/  {MODEL}, {LABELS}, {INFER}, {APP}; {stated.inputs.summary()}")
    if version not in STRONGLY_TYPED_VERSIONS:
        logger.warning(
            f"warning: nvinfer of DeepStream {version} doesn't keep the types of the graph when it builds an engine; "
            "build one on the machine that runs it, under the name that model-engine-file has"
        )
    return WrittenFolder(folder, stated, verification)


def default_canvas(manifest: Manifest, frame_hw: tuple[int, int]) -> tuple[int, int]:
    """The graph's only canvas, or the one that this toolkit lays a frame of this size on, or the nearest in range."""
    shapes: InputShapes = manifest.inputs
    if shapes.has_one_canvas:
        return shapes.largest_canvas
    return shapes.nearest_canvas(plan(frame_hw, manifest.preprocess).canvas_hw)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `path`; it gets that name if the block succeeds, and is removed if it fails.

    Raises WriteError where it can't be written, or where `path` appeared meanwhile.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary_folder(path) as temporary:
            yield temporary
            if path.exists():  # a rename would replace an empty folder
                raise FileExistsError(errno.EEXIST, "there is a file or folder of that name", str(path))
            os.rename(temporary, path)
    except OSError as error:
        raise write_error(path, error) from error
