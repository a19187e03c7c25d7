"""The targets, by name. A module for each kind of reader; libraries are imported where a target needs them."""

from __future__ import annotations

from ..target import Target
from . import checkpoints, data_sets, detector, layouts, lists, onnx_files, options, pictures, records, results, served

TARGETS: dict[str, Target] = {
    **data_sets.TARGETS,
    **layouts.TARGETS,
    **results.TARGETS,
    **records.TARGETS,
    **pictures.TARGETS,
    **lists.TARGETS,
    **detector.TARGETS,
    **checkpoints.TARGETS,
    **onnx_files.TARGETS,
    **served.TARGETS,
    **options.TARGETS,
}
