"""Refuses int8 files on whose sums this processor's kernels may saturate, which would change the AP."""

from __future__ import annotations

from pathlib import Path

from ..command_names import QUANTIZE
from ..machine.processor import Processor, read_processor
from ..manifest import Manifest
from .contract import BackendError

_CONVERT_AGAIN = f"{QUANTIZE} MODEL.onnx --precision int8 --target cpu --images DIR"


def may_saturate(manifest: Manifest, processor: Processor) -> bool:
    """Whether sums of two 8-bit products may exceed the 16 bits in which this processor adds them.

    True also for a file that doesn't say that its sums fit, and for a processor whose features are unknown.
    """
    return manifest.precision == "int8" and not manifest.sums_fit_16_bits and not processor.sums_8_bit_products_exactly


def check_saturation(path: Path, manifest: Manifest, allowed: bool) -> None:
    """Raise BackendError where this processor's kernels may saturate on the file, unless `allowed`."""
    if allowed or manifest.precision != "int8" or manifest.sums_fit_16_bits:
        return
    processor = read_processor()
    if not may_saturate(manifest, processor):
        return
    if processor.sums_8_bit_products_exactly is None:
        why = f"it is unknown whether {processor} adds them in 32"
    else:
        why = f"{processor} adds them in 16 (no VNNI, no dot product)"
    raise BackendError(
        f"{path}: an int8 file whose sums of two products need more than 16 bits, and {why}, which costs AP; make an "
        f"int8 file for every processor from the float32 file ({_CONVERT_AGAIN}), or accept the loss with "
        "--allow-saturation"
    )
