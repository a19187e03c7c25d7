"""An exported ONNX file in another precision: fp16, bf16, int8 or fp8, made in the file's own types.

    python -m export.quantize mine.onnx --precision fp16
    python -m export.quantize mine.onnx --precision int8 --images photos/train
    python -m export.quantize mine.onnx --precision int8 --target cpu --images photos/train

Only the network changes; scores, boxes and NMS are float32 and stay as they were. `--target` says what an int8 file is
for: `tensorrt` (symmetric int8, the rest in fp16; runs elsewhere, but not faster) or `cpu` (ONNX Runtime, OpenVINO).
"""

from __future__ import annotations

if __name__ == "__main__" and not __package__:  # run as `python export/quantize.py`: become `python -m export.quantize`
    import runpy
    import sys
    from pathlib import Path

    sys.path[0] = str(Path(__file__).resolve().parent.parent)
    runpy.run_module("export.quantize", run_name="__main__", alter_sys=True)

import argparse
import dataclasses
from collections.abc import Collection
from importlib import metadata
from pathlib import Path

import onnx

from runtime.errors import UserError, run_main
from runtime.files import atomic_path
from runtime.manifest import METADATA_KEY, Manifest, Precision, to_json

from .calibration import (
    PICTURES,
    Calibration,
    Method,
    calibrate_cached,
    check_calibration,
    find_images,
    shows_progress,
)
from .half import to_half
from .layers import convolutions, summary
from .network import ModelError, cut_network, load_deployed, with_network
from .onnx_file import graph_sha256
from .qdq import FP8, INT8, Target, quantize_network


class QuantizeError(UserError):
    """A conversion that can't be made as asked."""


def convert(
    model_path: Path,
    out: Path,
    precision: Precision,
    calibration: Calibration | None = None,
    *,
    target: Target = "tensorrt",
    method: Method = "max",
    in_float: Collection[str] = (),
    reduce_range: bool = False,
) -> None:
    """Write the float32 file `model_path` in another precision, all or nothing.

    int8 and fp8 need the `calibration` of that file; `in_float` names outputs of nodes to leave in float. Raises
    ModelError for a file that isn't ours or already converted, CalibrationError for a foreign calibration, WriteError.
    """
    model, manifest = load_deployed(model_path)
    require_fp32(manifest, model_path)
    converted = converted_model(
        model,
        manifest,
        precision,
        calibration,
        target=target,
        method=method,
        in_float=in_float,
        reduce_range=reduce_range,
    )
    with atomic_path(out) as temporary:
        temporary.write_bytes(converted.SerializeToString(deterministic=True))


def require_fp32(manifest: Manifest, path: Path) -> None:
    """Raise ModelError for a file that was converted before."""
    if manifest.precision != "fp32":
        raise ModelError(
            f"{path}: already {manifest.precision}; a conversion starts from the float32 file that "
            "export/to_onnx.py wrote"
        )


def converted_model(
    model: onnx.ModelProto,
    manifest: Manifest,
    precision: Precision,
    calibration: Calibration | None,
    *,
    target: Target = "tensorrt",
    method: Method = "max",
    in_float: Collection[str] = (),
    reduce_range: bool = False,
) -> onnx.ModelProto:
    """See `convert`; from a model in memory to one."""
    network = cut_network(model)
    if precision in ("int8", "fp8"):
        if calibration is None:
            raise QuantizeError(f"{precision} needs pictures to calibrate on: give --images DIR")
        check_calibration(calibration, manifest, None, "the calibration")
        if precision == "fp8" and target == "cpu":
            raise QuantizeError("--precision fp8 is for GPUs, no CPU computes in it: leave --target cpu out")
        network = quantize_network(
            network,
            calibration.ranges[method],
            target,
            FP8 if precision == "fp8" else INT8,
            in_float,
            reduce_range,
        )
        if target == "tensorrt":
            network = to_half(network, "fp16")
    elif precision in ("fp16", "bf16"):
        network = to_half(network, "bf16" if precision == "bf16" else "fp16")
    else:
        raise QuantizeError(f"--precision {precision}: the exported file is float32 already")
    converted = with_network(model, network)
    stated = dataclasses.replace(
        manifest,
        precision=precision,
        graph_sha256=graph_sha256(converted),
        libraries=manifest.libraries | {name: metadata.version(name) for name in ("onnx", "ml_dtypes")},
        ap=None,  # measured on the float32 file, not on this one
    )
    converted.metadata_props.add(key=METADATA_KEY, value=to_json(stated))
    return converted


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    path = Path(options.model)
    out = Path(options.output) if options.output else path.with_name(f"{path.stem}.{options.precision}.onnx")
    model, manifest = load_deployed(path)
    require_fp32(manifest, path)
    calibration = None
    if options.precision in ("int8", "fp8"):
        if options.images is None:
            raise QuantizeError(f"--precision {options.precision} needs pictures to calibrate on: give --images DIR")
        images = find_images(Path(options.images), options.calibration_images)
        cache = Path(options.calibration) if options.calibration else path.with_name(f"{path.stem}.calibration.json")
        calibration = calibrate_cached(model, manifest, images, cache, shows_progress())
        for line in calibration.skipped[:5]:
            print(f"warning: skipped {line}")
    convert(path, out, options.precision, calibration, target=options.target, method=options.method)
    print(f"{out}  {out.stat().st_size / 1e6:.1f} MB, convolutions: {summary(convolutions(onnx.load(out)))}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m export.quantize", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", metavar="MODEL.onnx", help="float32 file that export/to_onnx.py wrote")
    parser.add_argument("--precision", required=True, choices=("fp16", "bf16", "int8", "fp8"))
    parser.add_argument("-o", "--output", metavar="OUT.onnx", help="default: MODEL.PRECISION.onnx")
    parser.add_argument("--target", choices=("tensorrt", "cpu"), default="tensorrt", help="of int8 (%(default)s)")
    parser.add_argument("--images", metavar="DIR", help="pictures to calibrate on")
    parser.add_argument("--calibration-images", type=int, default=PICTURES, metavar="N", help="(%(default)s)")
    parser.add_argument("--calibration", metavar="JSON", help="calibration file to reuse or write")
    parser.add_argument("--method", choices=("max", "mse", "percentile"), default="max")
    return parser


if __name__ == "__main__":
    run_main(main)
