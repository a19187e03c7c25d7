"""Verify a converted file against its float32 file, without torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from runtime.detections import Detections

from ..onnx_model.file import INPUT_NAMES
from ..onnx_model.network import cut_network, cut_postprocessing, dense_map_names, load_deployed
from ..onnx_model.session import open_session
from .checks import SAME_NETWORK, Check
from .comparison import Comparison, Dense, VerifyError, compare_images, drop_padding, make_comparison, open_model_file
from .equivalence import network_differences
from .images import Case
from .manifests import check_conversion
from .ranges import RangeErrors, quantization_ranges

_CANDIDATES = ["candidate_boxes", "candidate_scores", "candidate_classes"]


def verify_conversion(source: Path, model_path: Path, images: Sequence[np.ndarray]) -> list[Check]:
    """Compare a converted file with its float32 file `source`, on images (uint8 [h, w, 3] RGB) or synthetic ones.

    Raises UserError for a file that can't be read, that was made of something else, or whose precision needs images
    where there are none.
    """
    return compare_images(open_conversion(source, model_path), images)


def open_conversion(source: Path, model_path: Path) -> Comparison:
    """A comparison of a converted file with the float32 file that it was made of. Raises UserError."""
    original, original_manifest = load_deployed(source)
    network, postprocessing = open_session(cut_network(original)), open_session(cut_postprocessing(original))
    names = dense_map_names(original)

    def reference(case: Case) -> Dense:
        return network.run(names, {INPUT_NAMES[0]: case.images})

    def postprocess(case: Case, dense: Dense) -> list[Detections]:
        known = dict(zip((*INPUT_NAMES, *names), (case.images, case.image_sizes, *dense), strict=True))
        wanted = [value.name for value in postprocessing.get_inputs()]
        return drop_padding(*postprocessing.run(_CANDIDATES, {name: known[name] for name in wanted}))

    file = open_model_file(model_path)
    if file.manifest.checkpoint_sha256 != original_manifest.checkpoint_sha256:
        raise VerifyError(
            f"{model_path} and {source} were exported from different checkpoints: give two files of the same checkpoint"
        )
    unlike = ["the dense maps differ"]
    if dense_map_names(file.model) == names:
        unlike = network_differences(original, file.model, original_manifest.thresholds)
    compared = Check("file", SAME_NETWORK, len(original.graph.node), len(unlike), 0, "; ".join(unlike[:3]))
    comparison = make_comparison(reference, postprocess, file)
    ranges = quantization_ranges(file.model)
    errors = RangeErrors(original, ranges) if ranges and not unlike else None
    stated = check_conversion(file.manifest, original_manifest)
    return comparison._replace(file_checks=[*comparison.file_checks, stated, compared], ranges=errors)
