"""An exported ONNX file in another precision: fp16, bf16, int8 or fp8, made in the file's own types.

    python -m export.quantize mine.onnx --precision fp16
    python -m export.quantize mine.onnx --precision int8 --images photos --annotations train.json
    python -m export.quantize mine.onnx --precision int8 --target cpu --images photos
    python -m export.quantize mine.onnx --precision int8 --images photos --max-ap-loss 0.3 --val-annotations val.json

Only the network changes; scores, boxes and NMS are float32 and stay as they were. `--target` says what an int8 file is
for: `tensorrt` (symmetric int8, the rest in fp16), `cpu` (ONNX Runtime and OpenVINO on every processor) or `cpu-vnni`
(on those with VNNI or ARM's dot product, which sum all 8 bits exactly; `python -m runtime.doctor` says which this is).
The new file is compared with the old one before it gets its name (`export.verify`). No torch is needed.
"""

from __future__ import annotations

if __name__ == "__main__" and not __package__:  # run as `python export/quantize.py`: become `python -m export.quantize`
    import runpy
    import sys
    from pathlib import Path

    sys.path[0] = str(Path(__file__).resolve().parents[1])
    runpy.run_module("export.quantize", run_name="__main__", alter_sys=True)

if __name__ == "__main__":  # neither is among what `runtime` needs; torch isn't needed here
    from runtime.errors import require_installed

    require_installed(("onnx", "onnxruntime"), "a conversion reads the file and measures ranges with them")

import argparse
import sys
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple, get_args

import numpy as np
import onnx

from runtime.coco import CocoDataset, load_coco
from runtime.coco.command import require_same_classes
from runtime.errors import UserError, run_main
from runtime.files import atomic_path, require_writable
from runtime.images import ImageError, decode
from runtime.manifest import Manifest, Precision

from .onnx_model.network import cut_network, load_deployed
from .onnx_model.precision import count_convolutions, format_counts
from .onnx_model.saturation import check_sums
from .quantization.calibration import (
    CALIBRATION_IMAGES,
    METHODS,
    Calibration,
    CalibrationError,
    Method,
    calibrate_cached,
    calibration_batch,
    evenly_spaced,
    list_images,
    shows_progress,
)
from .quantization.convert import Scheme, convert_model, require_fp32
from .quantization.mixed import (
    RANKING_IMAGES,
    Block,
    Measurement,
    average_precision,
    fewest_in_float,
    measure_model,
    quantizable_blocks,
    rank_blocks,
    trade_table,
)
from .quantization.qdq import Target
from .verify.conversion import verify_conversion
from .verify.images import COMPARISON_IMAGES, unseen
from .verify.publish import publish

SKIPPED_NAMED = 5


class QuantizeError(UserError):
    """A conversion that can't be made as asked."""


class Accuracy(NamedTuple):
    """How much AP may be lost, in points of 100, on which images."""

    max_ap_loss: float
    dataset: CocoDataset


def convert_file(
    model_path: Path,
    out: Path,
    precision: Precision,
    calibration: Calibration | None = None,
    *,
    target: Target = "tensorrt",
    method: Method = "max",
    in_float: Collection[str] = (),
) -> None:
    """Write the float32 file `model_path` in another precision, all or nothing and without comparing it.

    int8 and fp8 need the `calibration` of that file; `in_float` names outputs of convolutions to leave in float. Raises
    ModelError for a file that isn't ours or already converted, CalibrationError for a foreign calibration, WriteError.
    """
    model, manifest = load_deployed(model_path)
    require_fp32(manifest, model_path)
    scheme = Scheme(precision, target, method)
    converted = convert_model(model, manifest, scheme, calibration, in_float)
    with atomic_path(out) as temporary:
        temporary.write_bytes(converted.SerializeToString(deterministic=True))


def quantize(
    source: Path,
    out: Path,
    scheme: Scheme,
    images: Sequence[Path] = (),
    cache: Path | None = None,
    accuracy: Accuracy | None = None,
    compare_on: Sequence[np.ndarray] = (),
) -> int:
    """Convert, compare with the float32 file, print what came out; 0, or 1 where they differ too much.

    int8 and fp8 are calibrated on `images`, or take the ranges that `cache` has of these images. Where none is named
    it is a file beside the source, replaced if it doesn't fit. It is compared on `images` (uint8 [h, w, 3] RGB),
    which had better be others: the ranges enclose what they were measured on. Without any it is compared on the first
    of `images`. Raises UserError for what the user can mend.
    """
    model, manifest = load_deployed(source)
    require_fp32(manifest, source)
    require_writable(out)
    calibration = None
    if scheme.is_quantized:
        path = cache or source.with_name(f"{source.stem}.calibration.json")
        calibration = calibrate_cached(model, manifest, images, path, shows_progress(), may_replace=cache is None)
        print(f"ranges of {calibration.images} images: {path}", flush=True)
        _warn(calibration.skipped)
    in_float: list[str] = []
    if accuracy is not None and calibration is not None:
        in_float = _within_loss(source, model, manifest, scheme, calibration, images, accuracy)
    converted = convert_model(model, manifest, scheme, calibration, in_float)
    compared_on = compare_on or _readable(images, COMPARISON_IMAGES)
    if not publish(
        out,
        lambda: converted.SerializeToString(deterministic=True),
        lambda path: verify_conversion(source, path, compared_on),
    ):
        return 1
    size, before = out.stat().st_size, source.stat().st_size
    print(
        f"{out}  {size / 1e6:.1f} MB ({size / before:.2f} of {source.name}), convolutions: "
        f"{format_counts(count_convolutions(converted))}"
    )
    if scheme.is_quantized and scheme.target == "tensorrt":
        print("for TensorRT; on a CPU take --target cpu, which is faster there and exact on every processor")
    elif scheme.is_quantized and not check_sums(converted).passed:
        print(
            "for processors with VNNI or ARM's dot product; others refuse it, as its sums need more than 16 bits there"
        )
    return 0


def _within_loss(
    source: Path,
    model: onnx.ModelProto,
    manifest: Manifest,
    scheme: Scheme,
    calibration: Calibration,
    images: Sequence[Path],
    accuracy: Accuracy,
) -> list[str]:
    """Outputs of the convolutions to keep in float, for AP within the loss; prints the measurements."""
    require_same_classes(manifest, accuracy.dataset)
    reference, runtime = average_precision(source, accuracy.dataset, shows_progress())
    print(f"float32: AP {100 * reference:.2f} ({runtime})", flush=True)
    canvases = [calibration_batch(image, manifest) for image in _readable(images, RANKING_IMAGES)]
    least = reference - accuracy.max_ap_loss / 100

    def measure(in_float: Collection[str]) -> Measurement:
        converted = convert_model(model, manifest, scheme, calibration, in_float)
        step = measure_model(converted, source, accuracy.dataset, canvases, shows_progress())
        print(f"{len(in_float)} convolutions more in float: AP {100 * step.ap:.2f}", flush=True)
        return step

    steps, kept = [measure([])], list[Block]()
    if steps[0].ap < least:
        ranking = rank_blocks(model, scheme, calibration, canvases, shows_progress())
        count, steps = fewest_in_float(ranking, measure, least, steps[0])
        kept = ranking[:count]
    of = len(quantizable_blocks(cut_network(model), scheme.weights))
    print(trade_table(reference, source.stat().st_size / 1e6, steps, kept, of), flush=True)
    return [name for block in kept for name in block.convolutions]


def _readable(images: Iterable[Path], count: int) -> list[np.ndarray]:
    """The first so many images that can be read."""
    found: list[np.ndarray] = []
    for path in images:
        if len(found) == count:
            break
        try:
            found.append(decode(path))
        except ImageError:
            continue  # calibration names them
    return found


def _warn(skipped: Sequence[str]) -> None:
    for line in skipped[:SKIPPED_NAMED]:
        print(f"warning: skipped {line}", file=sys.stderr)
    if skipped:
        print(f"warning: {len(skipped)} images could not be read", file=sys.stderr)


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    source = Path(options.model)
    out = Path(options.output) if options.output else source.with_suffix(f".{options.precision}.onnx")
    if out.suffix != ".onnx" or out.is_dir() or out.resolve() == source.resolve():
        raise QuantizeError(f"-o {out}: expected another file than the model, with a name that ends in .onnx")
    require_fp32(load_deployed(source)[1], source)  # before images are looked for
    scheme = Scheme(options.precision, options.target, options.method)
    images = calibration_images(options.images, options.annotations, options.calibration_images, scheme)
    others = unseen(list_images(Path(options.images), sys.maxsize), images) if options.images else []
    return quantize(
        source,
        out,
        scheme,
        images,
        Path(options.calibration) if options.calibration else None,
        _accuracy(options, scheme),
        _readable(others, COMPARISON_IMAGES),
    )


def calibration_images(folder: str | None, annotations: str | None, count: int, scheme: Scheme) -> list[Path]:
    """Up to `count` images of a folder, or of those in it that an annotation file lists, evenly spread.

    None for a precision that needs none, unless a folder is given: its images serve the comparison. Raises UserError.
    """
    if folder is None:
        if not scheme.is_quantized:
            return []
        raise CalibrationError(
            f"--precision {scheme.precision} needs images to calibrate on: give --images DIR, those that it was "
            "trained on"
        )
    if annotations is None:
        return list_images(Path(folder), count)
    dataset = load_coco(annotations, folder)
    return evenly_spaced([dataset.path(i) for i in range(len(dataset))], count)


def _accuracy(options: argparse.Namespace, scheme: Scheme) -> Accuracy | None:
    if options.max_ap_loss is None:
        return None
    if not scheme.is_quantized or options.max_ap_loss < 0:
        raise QuantizeError(
            f"--max-ap-loss {options.max_ap_loss} with --precision {options.precision}: expected points of AP, 0 or "
            "more, and int8 or fp8"
        )
    annotations = options.val_annotations or options.annotations
    if annotations is None:
        raise QuantizeError("--max-ap-loss is measured on annotated images: give --val-annotations JSON")
    return Accuracy(options.max_ap_loss, load_coco(annotations, options.val_images or options.images))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m export.quantize", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", metavar="MODEL.onnx", help="float32 file that export.to_onnx wrote")
    parser.add_argument("--precision", required=True, choices=[p for p in get_args(Precision) if p != "fp32"])
    parser.add_argument("-o", "--output", metavar="OUT.onnx", help="default: MODEL.PRECISION.onnx")
    parser.add_argument("--target", choices=get_args(Target), default="tensorrt", help="of int8 (%(default)s)")
    parser.add_argument("--images", metavar="DIR", help="images to calibrate on, others of them to compare on")
    parser.add_argument("--annotations", metavar="JSON", help="calibrate on the images that it lists")
    parser.add_argument(
        "--calibration-images", type=int, default=CALIBRATION_IMAGES, metavar="N", help="how many of them (%(default)s)"
    )
    parser.add_argument(
        "--calibration",
        metavar="JSON",
        help="ranges to reuse, or to write; default: MODEL.calibration.json, new where it doesn't fit",
    )
    parser.add_argument("--method", choices=METHODS, default="max", help="how ranges are chosen (%(default)s)")
    parser.add_argument(
        "--max-ap-loss", type=float, metavar="POINTS", help="keep blocks in float until no more AP is lost"
    )
    parser.add_argument("--val-annotations", metavar="JSON", help="where AP is measured (default: --annotations)")
    parser.add_argument("--val-images", metavar="DIR", help="its images (default: --images)")
    return parser


if __name__ == "__main__":
    run_main(main)
