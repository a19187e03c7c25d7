"""Convert a deployed float32 model to another precision: the steps of each precision, and the new manifest."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import onnx

from runtime.errors import UserError
from runtime.files import atomic_path
from runtime.manifest import METADATA_KEY, Manifest, to_json

from ..calibration import Calibration, check_calibration
from ..onnx_model.file import graph_sha256
from ..onnx_model.forms import for_processor
from ..onnx_model.group_norm import join_group_norms
from ..onnx_model.network import ModelError, cut_network, load_deployed, replace_network
from ..onnx_model.precision import QUANTIZATION_KEY, QuantizationNote
from ..onnx_model.saturation import sums_fit_16_bits
from .half import to_half
from .qdq import layout_of, quantize_network, weight_format
from .scheme import Scheme


class ConvertError(UserError):
    """A precision that can't be made as asked."""


class Float32Model(NamedTuple):
    """A float32 file as it was read: what a conversion starts from."""

    path: Path
    model: onnx.ModelProto
    manifest: Manifest


def load_float32(path: Path) -> Float32Model:
    """Read a file that export.to_onnx wrote. Raises ModelError for a foreign or converted one, ManifestError."""
    model, manifest = load_deployed(path)
    if manifest.interface != "toolkit":
        raise ModelError(f"{path}: made for {manifest.interface}; convert the file that it was made from")
    if manifest.precision != "fp32":
        raise ModelError(
            f"{path}: already {manifest.precision}; a conversion starts from the float32 file that export.to_onnx wrote"
        )
    return Float32Model(path, model, manifest)


def convert_file(
    source: Path, out: Path, scheme: Scheme, calibration: Calibration | None = None, in_float: Collection[str] = ()
) -> None:
    """Write a float32 file in another precision, all or nothing, without verifying it (`export.api.quantize` does).

    Raises what `load_float32` and `convert_model` raise, and WriteError.
    """
    _, model, manifest = load_float32(source)
    converted = convert_model(model, manifest, scheme, calibration, in_float)
    with atomic_path(out) as temporary:
        temporary.write_bytes(converted.SerializeToString(deterministic=True))


def convert_model(
    model: onnx.ModelProto,
    manifest: Manifest,
    scheme: Scheme,
    calibration: Calibration | None,
    in_float: Collection[str] = (),
) -> onnx.ModelProto:
    """A float32 model in another precision, with its new manifest in the metadata.

    int8 and fp8 need a `calibration` of this model. `in_float` names outputs of convolutions to leave in float.
    Raises ConvertError for a precision that can't be made, CalibrationError for the calibration of another graph,
    ModelError for weights beyond float16.
    """
    note, network = None, cut_network(join_group_norms(model))  # a normalization in half precision is one operator
    if scheme.is_quantized:
        if calibration is None:
            raise ConvertError(f"{scheme.precision} needs a calibration: measure one on images")
        check_calibration(calibration, manifest, None, "the calibration")
        network = quantize_by_scheme(network, scheme, calibration, in_float)
        if layout_of(scheme.target).symmetric:
            network = to_half(network, "fp16")
        note = QuantizationNote(
            scheme.target, scheme.method, calibration.images, calibration.images_sha256, tuple(sorted(in_float))
        )
    elif scheme.precision == "fp16" or scheme.precision == "bf16":
        network = to_half(network, scheme.precision)
    else:
        raise ConvertError(f"precision {scheme.precision}: the exported file is that already")
    converted = for_processor(replace_network(model, network), manifest.thresholds, scheme.processor)
    stated = dataclasses.replace(
        manifest,
        precision=scheme.precision,
        sums_fit_16_bits=sums_fit_16_bits(converted) if scheme.precision == "int8" else None,
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
    """The network in 8 bits as the scheme says, with what stays in float still float32. Raises ConvertError."""
    ranges, weights = calibration.ranges[scheme.method], weight_format(scheme.precision)
    return quantize_network(network, ranges, scheme.target, weights, in_float, calibration.means)
