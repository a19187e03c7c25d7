"""Mixed precision by accuracy: the blocks that cost most AP stay in float, as few as a given loss of AP allows.

Blocks are ranked by the noise in the dense maps when only this block is quantized, relative to the maps' variance, on a
few images. Then AP is measured on a validation set with the worst 0, 1, 2, 4, … blocks in float until the goal is met,
and by bisection between the last two of these numbers: about 2·log₂(blocks) measurements.
"""

from __future__ import annotations

import logging
import re
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
from tqdm import tqdm

from runtime.backends import open_backend
from runtime.benchmark.measuring import speed_ratios
from runtime.coco import CocoDataset
from runtime.coco.classes import match_dataset
from runtime.coco.evaluation import score_detector
from runtime.coco.metrics import NOTHING
from runtime.coco.run import RunSettings
from runtime.detector import Detector
from runtime.errors import UserError
from runtime.temporaries import scratch_folder

from ..calibration import Calibration
from ..onnx_model.emulation import emulate, emulate_network, needs_emulation
from ..onnx_model.file import INPUT_NAMES
from ..onnx_model.network import cut_network
from ..onnx_model.session import open_session
from .calibrate import calibration_batch
from .convert import Float32Model, convert_model, quantize_by_scheme
from .goal import AccuracyGoal
from .qdq import INT8, NumberFormat, quantizable, weight_format
from .scheme import Scheme

_BLOCK = re.compile(r"\D*(?:\d+\.)?\d+(?=\.|$)")
RANKING_IMAGES = 8  # how many images blocks are ranked on

logger = logging.getLogger(__name__)


class MixedError(UserError):
    """A goal of AP that can't be met, or a validation set without objects."""


class Block(NamedTuple):
    """A part of the network that is quantized or stays in float as a whole."""

    name: str
    convolutions: tuple[str, ...]  # their outputs
    noise: float  # mean square error of the dense maps when only this block is quantized, by the maps' variance


class Measurement(NamedTuple):
    """What was measured with the worst `in_float` blocks in float."""

    in_float: int  # blocks
    ap: float  # 0–1
    megabytes: float  # of the file
    speedup: float  # as the float32 file, here


def convolutions_in_float(
    source: Float32Model,
    scheme: Scheme,
    calibration: Calibration,
    images: Sequence[np.ndarray],
    goal: AccuracyGoal,
    progress: bool = True,
) -> list[str]:
    """Outputs of the convolutions to keep in float, the fewest blocks of them with which the AP meets the goal.

    Blocks are ranked, and speed is measured, on `images` (uint8 [h, w, 3] RGB). Logs each measurement and the table of
    them. Raises MixedError where no number of blocks meets the goal, UserError where the data set has none of the
    model's classes.
    """
    path, model, manifest = source
    for line in match_dataset(manifest, goal.dataset).differences:
        logger.warning(f"warning: {line}")
    reference, runtime = average_precision(path, goal.dataset, progress)
    logger.info(f"float32: AP {100 * reference:.2f} ({runtime})")
    canvases = [calibration_batch(image, manifest) for image in images]
    least = reference - goal.max_ap_loss / 100

    def measure(in_float: Collection[str]) -> Measurement:
        converted = convert_model(model, manifest, scheme, calibration, in_float)
        measured = measure_model(converted, path, goal.dataset, canvases, progress)
        logger.info(f"{len(in_float)} convolutions more in float: AP {100 * measured.ap:.2f}")
        return measured

    measurements, kept = [measure([])], list[Block]()
    if measurements[0].ap < least:
        ranking = rank_blocks(model, scheme, calibration, canvases, progress)
        count, measurements = fewest_in_float(ranking, measure, least, measurements[0])
        kept = ranking[:count]
    block_count = len(quantizable_blocks(cut_network(model), weight_format(scheme.precision)))
    logger.info(trade_table(reference, path.stat().st_size / 1e6, measurements, kept, block_count))
    return [name for block in kept for name in block.convolutions]


def quantizable_blocks(network: onnx.ModelProto, weights: NumberFormat = INT8) -> dict[str, list[str]]:
    """Residual block, pyramid or tower layer (named as in training) → outputs of its quantizable convolutions."""
    found: dict[str, list[str]] = defaultdict(list)
    for node in quantizable(network, weights):
        if node.op_type == "Conv":
            layer = node.input[1].removeprefix("detector.").removesuffix(".weight")
            match = _BLOCK.match(layer)
            found[match.group() if match else layer].append(node.output[0])
    return dict(found)


def rank_blocks(
    model: onnx.ModelProto,
    scheme: Scheme,
    calibration: Calibration,
    canvases: Sequence[np.ndarray],
    progress: bool = True,
) -> list[Block]:
    """The blocks by their noise on `canvases` (uint8 [B, H, W, 3]), the noisiest first."""
    network = cut_network(model)
    named = quantizable_blocks(network, weight_format(scheme.precision))
    everything = {name for outputs in named.values() for name in outputs}
    expected = [open_session(network).run(None, {INPUT_NAMES[0]: canvas}) for canvas in canvases]
    variance = [np.var(np.concatenate([maps[i].ravel() for maps in expected])) for i in range(len(expected[0]))]
    found = []
    for name, outputs in tqdm(named.items(), desc="rank blocks", unit="block", disable=not progress, leave=False):
        quantized = quantize_by_scheme(network, scheme, calibration, everything - set(outputs))
        alone = open_session(emulate_network(quantized))  # emulated, so that every processor ranks alike
        noise = 0.0
        for canvas, maps in zip(canvases, expected, strict=True):
            given = alone.run(None, {INPUT_NAMES[0]: canvas})
            noise += sum(
                float(np.mean((a - b) ** 2) / max(v, 1e-12)) for a, b, v in zip(given, maps, variance, strict=True)
            )
        found.append(Block(name, tuple(outputs), noise / len(canvases)))
    return sorted(found, key=lambda block: -block.noise)


def fewest_in_float(
    ranking: Sequence[Block], measure: Callable[[Collection[str]], Measurement], least_ap: float, none: Measurement
) -> tuple[int, list[Measurement]]:
    """How many of the worst blocks must stay in float for an AP of `least_ap` (0–1), and the measurements made.

    `measure` takes the outputs of the convolutions in float; `none` is its result without any. Raises MixedError where
    all blocks in float don't suffice.
    """
    steps = {0: none}

    def enough(count: int) -> bool:
        if count not in steps:
            outputs = [name for block in ranking[:count] for name in block.convolutions]
            steps[count] = measure(outputs)._replace(in_float=count)
        return steps[count].ap >= least_ap

    too_few, count = -1, 0
    while not enough(count):
        if count == len(ranking):
            raise MixedError(
                f"even with all {count} blocks in float AP is {100 * steps[count].ap:.2f}, less than "
                f"{100 * least_ap:.2f}: allow a larger loss"
            )
        too_few, count = count, min(max(1, 2 * count), len(ranking))
    while count - too_few > 1:
        middle = (count + too_few) // 2
        if enough(middle):
            count = middle
        else:
            too_few = middle
    return count, [steps[n] for n in sorted(steps)]


def average_precision(path: Path, dataset: CocoDataset, progress: bool = True, **options: Any) -> tuple[float, str]:
    """AP (0–1) of a file on a validation set, and the backend that ran it. Raises MixedError without objects."""
    with Detector(path, **options) as detector:
        ap = score_detector(detector, dataset, settings=RunSettings(progress=progress)).metrics.values["AP"]
    if ap < 0:
        raise MixedError(f"{dataset.json_path}: {NOTHING}, so there is no AP to hold")
    return ap, detector.backend.description


def measure_model(
    model: onnx.ModelProto, source: Path, dataset: CocoDataset, canvases: Sequence[np.ndarray], progress: bool = True
) -> Measurement:
    """AP and size of a model in memory, and its speedup over the file that it was made of.

    The AP is the emulation's where this CPU's kernels don't compute what the model says (`needs_emulation`).
    """
    with scratch_folder() as folder:
        path = scored = folder / "model.onnx"
        path.write_bytes(model.SerializeToString())
        if needs_emulation(model):
            scored = path.with_name("emulated.onnx")
            scored.write_bytes(emulate(model).SerializeToString())
        ap, _ = average_precision(scored, dataset, progress, allow_saturation=True)
        return Measurement(0, ap, path.stat().st_size / 1e6, speedup(source, path, canvases))


def speedup(source: Path, path: Path, canvases: Sequence[np.ndarray]) -> float:
    """Median over canvases (uint8 [B, H, W, 3]) of the source's time divided by the other file's; both take turns."""
    seconds: dict[Path, list[float]] = {source: [], path: []}
    with closing(open_backend(source)) as first, closing(open_backend(path, allow_saturation=True)) as second:
        for canvas in (canvases[0], *canvases):
            sizes = np.full((len(canvas), 2), canvas.shape[1:3], np.int32)
            for file, backend in ((source, first), (path, second)):
                started = time.perf_counter()
                backend.infer(canvas, sizes)
                seconds[file].append(time.perf_counter() - started)
    return speed_ratios(*(of_file[1:] for of_file in seconds.values())).p50  # the first run was the warm-up


def trade_table(
    reference_ap: float,
    reference_megabytes: float,
    steps: Sequence[Measurement],
    in_float: Sequence[Block],
    block_count: int,
) -> str:
    """The measurements as a table, and the blocks that stayed in float, of `block_count`."""
    lines = [f"{'blocks in float':>15}{'AP':>9}{'loss':>8}{'MB':>9}{'× fp32':>9}"]
    lines.append(f"{'all (fp32)':>15}{100 * reference_ap:>9.2f}{'':>8}{reference_megabytes:>9.1f}{1:>9.2f}")
    for step in steps:
        mark = "  ← chosen" if step.in_float == len(in_float) else ""
        lines.append(
            f"{f'{step.in_float} of {block_count}':>15}{100 * step.ap:>9.2f}{100 * (reference_ap - step.ap):>+8.2f}"
            f"{step.megabytes:>9.1f}{step.speedup:>9.2f}{mark}"
        )
    if in_float:
        lines.append("in float: " + ", ".join(f"{block.name} (noise {block.noise:.2g})" for block in in_float))
    return "\n".join(lines)
