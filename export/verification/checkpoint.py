"""Verify an exported file against its checkpoint, whose detector runs in torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from runtime.detections import Detections
from train.build import build_postprocess
from train.checkpoint import LoadedDetector
from train.model.detector import DenseOutputs
from train.model.postprocess import select_candidates
from train.trainer.evaluation import detector_manifest

from .checks import Check
from .comparison import Comparison, Dense, VerifyError, compare_images, drop_padding, make_comparison, open_model_file
from .images import Case
from .manifests import check_export


def verify_export(loaded: LoadedDetector, model_path: Path, images: Sequence[np.ndarray]) -> list[Check]:
    """Compare a checkpoint's detector with a model file, on images (uint8 [h, w, 3] RGB, any sizes) or synthetic ones.

    Raises UserError for a file that can't be read, that was made of another checkpoint, or whose precision needs images
    where there are none.
    """
    return compare_images(open_export(loaded, model_path), images)


def open_export(loaded: LoadedDetector, model_path: Path) -> Comparison:
    """A comparison of a model file with the checkpoint that it was made of. Raises UserError."""
    settings = loaded.config

    def reference(case: Case) -> Dense:
        with torch.inference_mode():
            maps = loaded.detector(torch.from_numpy(case.images))
        return [level.numpy() for kind in maps for level in kind]

    rule = build_postprocess(settings.model, settings.thresholds)

    def postprocess(case: Case, dense: Dense) -> list[Detections]:
        levels = settings.model.pyramid.levels
        maps = [torch.from_numpy(level) for level in dense]
        outputs = DenseOutputs(*(maps[i : i + levels] for i in range(0, 3 * levels, levels)))
        with torch.inference_mode():
            found = select_candidates(outputs, torch.from_numpy(case.image_sizes), rule)
        return drop_padding(*(part.numpy() for part in found))

    file = open_model_file(model_path)
    manifest = file.manifest
    if manifest.checkpoint_sha256 != loaded.sha256:
        raise VerifyError(
            f"{model_path} was exported from another checkpoint (SHA-256 {manifest.checkpoint_sha256[:12]}…, recipe "
            f"{manifest.recipe}; the one given has {loaded.sha256[:12]}…): give that checkpoint, or export this one "
            "again"
        )
    comparison = make_comparison(reference, postprocess, file)
    stated = check_export(manifest, detector_manifest(loaded.config, loaded.classes, manifest.inputs))
    return comparison._replace(file_checks=[*comparison.file_checks, stated])
