"""The step that compares a deployed file with what it was made of."""

from __future__ import annotations

from pathlib import Path

from runtime.backends.engine_file import SUFFIXES as ENGINE_SUFFIXES
from runtime.images.limit import max_pixels as pixels_of

from .arguments import require_libraries
from .verification.checks import Verification


def verify_file(
    reference: Path, path: Path, folder: str | None, onnx_file: Path | None, max_pixels: int
) -> Verification:
    """Compare a file or an engine with the checkpoint (.pt) or the float32 file (.onnx) that it was made of.

    They run on images of `folder`, by default on the checkpoint's validation images. Those have at most `max_pixels`,
    or what the checkpoint's training allowed. Raises UserError.
    """
    from .verification.conversion import verify_conversion
    from .verification.images import load_comparison_images

    if reference.suffix == ".onnx":
        return Verification(
            tuple(verify_conversion(reference, path, load_comparison_images(folder, max_pixels=max_pixels)))
        )
    require_libraries(("torch", "torchvision"), "a checkpoint runs in it: pip install {name}")
    from train.checkpoint import load_detector

    loaded = load_detector(reference)
    limit = max(max_pixels, pixels_of(loaded.config.data.max_megapixels))
    compare_on = load_comparison_images(folder, loaded.config.data.val_images, max_pixels=limit)
    if path.suffix in ENGINE_SUFFIXES:
        from .verification.engine import verify_engine

        return verify_engine(loaded, path, compare_on, onnx_file)
    from .verification.checkpoint import verify_export

    return Verification(tuple(verify_export(loaded, path, compare_on)))
