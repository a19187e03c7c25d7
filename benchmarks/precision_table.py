r"""Measures AP, size and speed of every precision of one detector and prints a table.

    python benchmarks/precision_table.py model.onnx --calibrate train/ --calibrate-annotations train.json \
        --images val/ --annotations val.json --json table.json
    python benchmarks/precision_table.py model.onnx --calibrate photos/ --images photos/     # sizes and speeds
    python benchmarks/precision_table.py best.pt …                                          # exported first

AP is measured three times: as the file's numbers say (`onnx_model.emulation`: half precision rounded as a GPU rounds
it, 8-bit sums exact), as ONNX Runtime runs the file on this CPU, and as OpenVINO does, saturating or not. "alike" is
the share of detections that the two runtimes have in common (same class, IoU above 0.9, scores that differ by at most
0.05; only scores of at least 0.1 count). Speeds are ratios to the float32 file in the same runtime, of the
network's time at batch 1: the median and quartiles over rounds in which the files alternate.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import onnx

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from export.calibration import METHODS
from export.graph.checkpoint import checkpoint_to_graph
from export.graph.shapes import input_shapes
from export.onnx_model.emulation import emulate
from export.onnx_model.network import load_deployed
from export.quantization.calibrate import calibrate, calibration_images
from export.quantization.convert import convert_model
from export.quantization.scheme import CALIBRATION_IMAGES, Scheme
from export.verification.matching import MatchTolerance, count_unmatched
from runtime.backends import BackendError
from runtime.benchmark.images import ImageFiles, find_images
from runtime.benchmark.measuring import Distribution, speed_ratios
from runtime.benchmark.stages import plan_work, run_round
from runtime.coco import load_coco_with_truth, score
from runtime.coco.results import Results
from runtime.coco.run import RunSettings, detect_with_all
from runtime.detections import Detections
from runtime.detector import Detector
from runtime.errors import run_main
from runtime.files import atomic_write, require_writable, sha256_file
from runtime.machine.conditions import describe_machine, describe_run, version_of
from runtime.machine.processor import read_processor
from train.checkpoint import load_detector

ALIKE, LEAST_SCORE = MatchTolerance(iou=0.9, shift=2.0, score=0.05), 0.1
RUNTIMES = {"cpu": "ONNX Runtime", "openvino": "OpenVINO"}
NOT_RUN = {("bf16", "cpu"), ("bf16", "openvino"), ("fp8", "openvino")}  # no kernels on a CPU, or none in 8 bits


@dataclasses.dataclass
class Row:
    """The measurements of one file; AP 0–1."""

    name: str
    bytes: int
    size_ratio: float
    ap_emulated: float | None = None
    ap: dict[str, float] = dataclasses.field(default_factory=dict)  # by runtime
    alike: float | None = None  # ONNX Runtime's and OpenVINO's detections
    times_as_fast: dict[str, Distribution] = dataclasses.field(default_factory=dict)  # as fp32 in the same runtime


def schemes(method: str) -> dict[str, Scheme]:
    """Every conversion that the table has, under the name of its row."""
    return {
        "fp16": Scheme("fp16"),
        "bf16": Scheme("bf16"),
        "int8 cpu": Scheme("int8", "cpu", method),  # type: ignore[arg-type]
        "int8 cpu-vnni": Scheme("int8", "cpu-vnni", method),  # type: ignore[arg-type]
        "int8 tensorrt": Scheme("int8", "tensorrt", method),  # type: ignore[arg-type]
        "fp8": Scheme("fp8", "tensorrt", method),  # type: ignore[arg-type]
    }


def make_files(source: Path, images: Sequence[Path], method: str, folder: Path) -> dict[str, Path]:
    """The float32 file (exported from a checkpoint if needed), and one file for each scheme."""
    if source.suffix != ".onnx":
        loaded = load_detector(source)
        source = folder / "fp32.onnx"
        source.write_bytes(checkpoint_to_graph(loaded, input_shapes(loaded.config.preprocess, 16)))
    model, manifest = load_deployed(source)
    calibration = calibrate(model, manifest, images())
    files = {"fp32": source}
    for name, scheme in schemes(method).items():
        files[name] = folder / f"{name}.onnx"
        files[name].write_bytes(convert_model(model, manifest, scheme, calibration).SerializeToString())
    return files


def score_files(
    rows: dict[str, Row], files: dict[str, Path], runtimes: Sequence[str], options: argparse.Namespace
) -> None:
    """AP of every file, and how far the runtimes agree."""
    dataset, truth = load_coco_with_truth(options.annotations, options.images)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        detectors: dict[tuple[str, str], Detector] = {}
        for name, path in files.items():
            stand_in = folder / path.name
            stand_in.write_bytes(emulate(onnx.load(path)).SerializeToString())
            detectors[name, "emulated"] = stack.enter_context(Detector(stand_in, backend="cpu", allow_saturation=True))
            for runtime in runtimes:
                if (name, runtime) not in NOT_RUN:
                    detectors[name, runtime] = stack.enter_context(
                        Detector(path, backend=runtime, allow_saturation=True)
                    )
        found = detect_with_all(
            list(detectors.values()), dataset, RunSettings(limit=options.limit, progress=sys.stderr.isatty())
        )
    results = dict(zip(detectors, found, strict=True))
    for (name, runtime), detected in results.items():
        ap = score(truth, detected.results, detected.image_ids).values["AP"]
        if runtime == "emulated":
            rows[name].ap_emulated = ap
        else:
            rows[name].ap[runtime] = ap
    for name, row in rows.items():
        if (name, "cpu") in results and (name, "openvino") in results:
            row.alike = share_alike(results[name, "cpu"].results, results[name, "openvino"].results)


def share_alike(a: Results, b: Results) -> float:
    """The share of both sides' detections (score at least LEAST_SCORE) with a partner on the other side."""
    alone, total = count_alone(a, b, ALIKE, LEAST_SCORE)
    return 1 - alone / max(total, 1)


def count_alone(a: Results, b: Results, same: MatchTolerance, least_score: float) -> tuple[int, int]:
    """How many of both sides' detections have no partner on the other side, and how many detections there are.

    Those below `least_score` are not looked at, but may be partners.
    """
    alone = total = 0
    for image_id in np.union1d(a.image_ids, b.image_ids):
        sides = [_of(results, int(image_id)) for results in (a, b)]
        for ours, theirs in (sides, sides[::-1]):
            kept = ours.scores >= least_score
            total += int(kept.sum())
            alone += count_unmatched(Detections(ours.boxes[kept], ours.scores[kept], ours.classes[kept]), theirs, same)
    return alone, total


def _of(results: Results, image_id: int) -> Detections:
    rows = results.image_ids == image_id
    boxes = results.boxes[rows].copy()
    boxes[:, 2:] += boxes[:, :2]
    return Detections(boxes, results.scores[rows], results.category_ids[rows])


def time_files(
    rows: dict[str, Row], files: dict[str, Path], runtime: str, photos: ImageFiles, rounds: int, threads: int
) -> None:
    """Ratios of the files' speeds in one runtime; the files alternate in each round."""
    with ExitStack() as stack:
        detectors = {
            name: stack.enter_context(Detector(path, backend=runtime, threads=threads, allow_saturation=True))
            for name, path in files.items()
            if (name, runtime) not in NOT_RUN and name != "fp8"
        }
        works = {name: plan_work(detector, photos.sizes_hw, 1) for name, detector in detectors.items()}
        seconds: dict[str, list[float]] = {name: [] for name in detectors}
        for number in range(rounds + 1):
            for name, detector in detectors.items():
                runs = run_round(detector, works[name])
                if number:  # the first warms up
                    seconds[name].append(sum(run.seconds["infer"] for run in runs))
    for name, measured in seconds.items():
        if name != "fp32":
            rows[name].times_as_fast[runtime] = speed_ratios(seconds["fp32"], measured)


def table(rows: dict[str, Row], runtimes: Sequence[str]) -> str:
    """The table as Markdown: AP of 100 and the difference to fp32 in the same runtime."""
    first = rows["fp32"]
    heads = ["", "AP, as the numbers say", *(f"AP, {RUNTIMES[runtime]}" for runtime in runtimes), "alike", "file"]
    heads += [f"× fp32, {RUNTIMES[runtime]}" for runtime in runtimes]
    lines = [f"| {' | '.join(heads)} |", "| --- " * len(heads) + "|"]
    for row in rows.values():
        cells = [row.name, _ap(row.ap_emulated, first.ap_emulated, row is first)]
        cells += [_ap(row.ap.get(runtime), first.ap.get(runtime), row is first) for runtime in runtimes]
        cells += [f"{row.alike:.1%}" if row.alike is not None else "", f"{row.size_ratio:.3f}"]
        speeds = [row.times_as_fast.get(runtime) for runtime in runtimes]
        cells += [f"{found.p50:.2f} ({found.p25:.2f}-{found.p75:.2f})" if found else "" for found in speeds]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _ap(value: float | None, base: float | None, is_first: bool) -> str:
    if value is None or base is None:
        return ""
    return f"{100 * value:.2f}" + ("" if is_first else f" ({100 * (value - base):+.2f})")


def main(arguments: list[str] | None = None) -> int:
    """Make the files, score and time them, and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, prog="benchmarks/precision_table.py"
    )
    parser.add_argument("model", type=Path, help="checkpoint, or float32 file that export/to_onnx.py wrote")
    parser.add_argument("--calibrate", required=True, metavar="DIR", help="images to calibrate on")
    parser.add_argument("--calibrate-annotations", metavar="JSON", help="only those that it lists")
    parser.add_argument(
        "--calibration-images", type=int, default=CALIBRATION_IMAGES, help="at most N images (%(default)s)"
    )
    parser.add_argument("--method", choices=METHODS, default=Scheme("int8").method, help="of ranges (%(default)s)")
    parser.add_argument("--images", type=Path, required=True, help="images to score and to measure speed on")
    parser.add_argument("--annotations", type=Path, help="COCO json to score against")
    parser.add_argument("--limit", type=int, help="score only the first N images")
    parser.add_argument(
        "--rounds", type=int, default=5, help="rounds of the speed measurement; 0 leaves it out (%(default)s)"
    )
    parser.add_argument("--num-images", type=int, default=8, help="images of a round (%(default)s)")
    parser.add_argument("--threads", type=int, default=0, help="threads of the runtimes (0: their own choice)")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    if options.json is not None:
        require_writable(options.json)
    if options.model.suffix not in (".onnx", ".pt"):
        raise BackendError(f"{options.model}: expected a checkpoint (.pt) or the float32 file made of it (.onnx)")
    machine = describe_machine()
    runtimes = [runtime for runtime in RUNTIMES if runtime == "cpu" or version_of("openvino") is not None]
    images = calibration_images(
        options.calibrate, options.calibrate_annotations, options.calibration_images, Scheme("int8")
    )
    with tempfile.TemporaryDirectory() as folder:
        files = make_files(options.model, images, options.method, Path(folder))
        sizes = {name: path.stat().st_size for name, path in files.items()}
        rows = {name: Row(name, size, size / sizes["fp32"]) for name, size in sizes.items()}
        if options.annotations is not None:
            score_files(rows, files, runtimes, options)
        if options.rounds:
            photos = find_images([options.images], options.num_images)
            for runtime in runtimes:
                time_files(rows, files, runtime, photos, options.rounds, options.threads)
        sha256 = sha256_file(files["fp32"])
    print(table(rows, runtimes))
    print(
        f"\ncalibrated on {len(images)} images ({options.method}); {options.rounds} rounds of {options.num_images}; "
        f"{read_processor()}, {machine.usable_processors} processors, {machine.busy_share} of their time taken by "
        "other work"
    )
    if options.json is not None:
        content = {
            "run": dataclasses.asdict(
                describe_run(" ".join(["python", *(sys.argv if arguments is None else arguments)]))
            ),
            "machine": dataclasses.asdict(machine),
            "abilities": read_processor().abilities,
            "sha256": sha256,
            "calibration": {"images": len(images), "method": options.method},
            "alike": ALIKE._asdict() | {"least_score": LEAST_SCORE},
            "rows": [dataclasses.asdict(row) for row in rows.values()],
        }
        atomic_write(options.json, json.dumps(content, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    run_main(main)
