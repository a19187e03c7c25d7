"""One deployed model to another of other types: which step makes which precision, and what the new file says."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection
from importlib import metadata
from pathlib import Path

import onnx

from runtime.errors import UserError
from runtime.manifest import METADATA_KEY, Manifest, Precision, to_json

from ..onnx_model.file import graph_sha256
from ..onnx_model.network import ModelError, cut_network, replace_network
from ..onnx_model.precision import QUANTIZATION_KEY, QuantizationNote
from ..onnx_model.saturation import check_sums
from .calibration import Calibration, Method, check_calibration
from .half import to_half
from .qdq import FP8, INT8, NumberFormat, Target, layout_of, quantize_network


class ConvertError(UserError):
    """A precision that can't be made as asked."""


@dataclasses.dataclass(frozen=True)
class Scheme:
    """What to make of a float32 file."""

    precision: Precision
    target: Target = "tensorrt"  # of int8
    method: Method = "max"  # by which ranges are chosen; benchmarks/calibration_methods.py compares them

    @property
    def is_quantized(self) -> bool:
        return self.precision in ("int8", "fp8")

    @property
    def weights(self) -> NumberFormat:
        return FP8 if self.precision == "fp8" else INT8


def require_fp32(manifest: Manifest, path: Path) -> None:
    """Raise ModelError for a file that was converted before."""
    if manifest.precision != "fp32":
        raise ModelError(
            f"{path}: already {manifest.precision}; a conversion starts from the float32 file that export.to_onnx wrote"
        )


def convert_model(
    model: onnx.ModelProto,
    manifest: Manifest,
    scheme: Scheme,
    calibration: Calibration | None,
    in_float: Collection[str] = (),
) -> onnx.ModelProto:
    """A float32 model in another precision, its manifest in the metadata; `in_float` names outputs of convolutions.

    Raises ConvertError, CalibrationError for the calibration of another graph, ModelError for weights beyond float16.
    """
    note = None
    if scheme.is_quantized:
        if calibration is None:
            raise ConvertError(f"{scheme.precision} needs a calibration: measure one on images")
        check_calibration(calibration, manifest, None, "the calibration")
        network = quantize_by_scheme(cut_network(model), scheme, calibration, in_float)
        if layout_of(scheme.target).symmetric:
            network = to_half(network, "fp16")
        note = QuantizationNote(
            scheme.target, scheme.method, calibration.images, calibration.images_sha256, tuple(sorted(in_float))
        )
    elif scheme.precision == "fp16" or scheme.precision == "bf16":
        network = to_half(cut_network(model), scheme.precision)
    else:
        raise ConvertError(f"precision {scheme.precision}: the exported file is that already")
    converted = replace_network(model, network)
    stated = dataclasses.replace(
        manifest,
        precision=scheme.precision,
        sums_fit_16_bits=check_sums(converted).passed if scheme.precision == "int8" else None,
        graph_sha256=graph_sha256(converted),
        libraries=manifest.libraries | {name: metadata.version(name) for name in ("onnx", "ml_dtypes")},
        ap=None,  # it was measured on the float32 file, not on this one
    )
    converted.metadata_props.add(key=METADATA_KEY, value=to_json(stated))
    if note is not None:
        converted.metadata_props.add(key=QUANTIZATION_KEY, value=json.dumps(dataclasses.asdict(note)))
    return converted


def quantize_by_scheme(
    network: onnx.ModelProto, scheme: Scheme, calibration: Calibration, in_float: Collection[str]
) -> onnx.ModelProto:
    """The network with 8 bits where the scheme has them, float32 elsewhere."""
    if scheme.precision == "fp8" and not layout_of(scheme.target).symmetric:
        raise ConvertError(f"fp8 is for GPUs, no CPU computes in it: leave --target {scheme.target} out")
    return quantize_network(
        network, calibration.ranges[scheme.method], scheme.target, scheme.weights, in_float, calibration.means
    )
