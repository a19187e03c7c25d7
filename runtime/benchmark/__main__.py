"""How fast a deployed model runs, stage by stage and through the pipeline, and what it takes to repeat that.

    python -m runtime.benchmark model.onnx --images photos/
    python -m runtime.benchmark model.onnx int8.onnx --images photos/ --batch 1 8 16 --json b.json --plot b.png
    python -m runtime.benchmark fp32.onnx int8.onnx --images photos/ --pair      # A B A B …, and ratios
    python -m runtime.benchmark m.onnx@cpu m.onnx@openvino --images photos/      # one model, two backends

A round takes every image once. Stage by stage, each stage waits for the one before; `pipeline` is what a user gets,
stages overlapping. With --pair the rounds of the artifacts alternate; without, one artifact is measured after the
other, alone in the process, so that each one's memory can be told.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tqdm import tqdm

from ..backends import BackendError
from ..backends.options import add_backend_arguments
from ..detector import Detector
from ..errors import UserError, run_main
from ..files import atomic_write, require_writable
from ..machine.conditions import (
    ModelInfo,
    command_line,
    describe_machine,
    describe_model,
    describe_run,
    memory_mb,
    peak_memory_mb,
    reset_peak_memory,
)
from ..machine.gpu_watch import GpuWatch
from ..model_spec import Given, open_hashed, parse_given
from .images import ImageFiles, find_images, generate_images
from .plot import plot, require_matplotlib
from .report import Figures, Measured, Memory, Pair, Report, Settings, as_json, figures, pairs
from .stages import plan_work, run_round
from .text import report_as_text, warnings

Clock = Callable[[], float]


def measure(
    detectors: dict[str, Detector],
    image_files: ImageFiles,
    batch: int,
    rounds: int,
    warmup: int = 1,
    clock: Clock = time.perf_counter,
    step: Callable[[], object] = lambda: None,
) -> list[Measured]:
    """So many rounds of each detector at this batch size, alternating where there are several: A B A B.

    `warmup` rounds come first and aren't counted. `step` is called after each round. Raises BackendError for a batch
    or an image that a graph doesn't take.
    """
    files = list(image_files.sizes_hw)
    measured = [
        Measured(name, batch, plan_work(detector, image_files.sizes_hw, batch), [], [])
        for name, detector in detectors.items()
    ]
    for turn in range(-warmup, rounds):
        for found in measured:
            runs = run_round(detectors[found.artifact], found.works, clock)
            if turn >= 0:
                found.stage_rounds.append(runs)
            step()
    for turn in range(-warmup, rounds):
        for found in measured:
            started = clock()
            run_pipeline(detectors[found.artifact], files, batch)
            if turn >= 0:
                found.pipeline_seconds.append(clock() - started)
            step()
    return measured


def run_pipeline(detector: Detector, files: Sequence[Path], batch: int) -> None:
    """Every file through decoding, network and postprocessing, as a user's call does it. Raises UserError."""
    for result in detector.stream(files, batch, wait_s=None):
        if isinstance(result, UserError):  # an image that could be read before
            raise result


def run(options: argparse.Namespace, image_files: ImageFiles, command: str) -> Report:
    """Measure what the command line asks for. The machine's load is read before any of it."""
    machine, described_run = describe_machine(), describe_run(command)
    named = dict(zip(_names(options.artifacts), options.artifacts, strict=True))
    artifacts = {name: _checked(given, options, image_files) for name, given in named.items()}
    groups = [list(named)] if options.pair else [[name] for name in named]
    found, memory, ratios = list[Figures](), list[Memory](), list[Pair]()
    rounds = 2 * (options.rounds + options.warmup) * len(options.batch) * len(named)
    with (
        GpuWatch(options.device) as gpu,
        tqdm(total=rounds, desc="rounds", unit="round", disable=not sys.stderr.isatty(), leave=False) as bar,
    ):
        for names in groups:
            reset_peak_memory()
            before = memory_mb()
            with ExitStack() as stack:
                detectors = {
                    name: stack.enter_context(_open_same(named[name], options, artifacts[name])) for name in names
                }
                for batch in options.batch:
                    measured = measure(
                        detectors, image_files, batch, options.rounds, options.warmup, step=lambda: bar.update(1)
                    )
                    found += [figures(one, len(image_files.sizes_hw)) for one in measured]
                    ratios += pairs(measured)
                memory.append(Memory(tuple(names), before, peak_memory_mb()))
    return Report(
        run=described_run,
        machine=machine,
        artifacts=tuple(artifacts.values()),
        images=image_files.described(),
        settings=Settings(tuple(options.batch), options.rounds, options.warmup, options.pair),
        figures=tuple(found),
        memory=tuple(memory),
        pairs=tuple(ratios),
        gpu=gpu.report(),
    )


def _checked(artifact: Given, options: argparse.Namespace, image_files: ImageFiles) -> ModelInfo:
    """Open and close an artifact: one that doesn't fit the images or the batches is known before any has run."""
    detector, sha256 = open_hashed(artifact, options)
    with detector:
        for batch in options.batch:
            plan_work(detector, image_files.sizes_hw, batch)
        return describe_model(artifact.path, sha256, detector)


def _open_same(artifact: Given, options: argparse.Namespace, described: ModelInfo) -> Detector:
    """Raises BackendError where it isn't the file any more that was described."""
    detector, sha256 = open_hashed(artifact, options)
    if sha256 != described.sha256:
        detector.close()
        raise BackendError(f"{artifact.path}: the file was replaced during the benchmark; run again")
    return detector


def _names(artifacts: Sequence[Given]) -> list[str]:
    """A name for each artifact. One that is given twice, to see how far two equal ones differ, gets a number."""
    counts = Counter[Given]()
    names = []
    for artifact in artifacts:
        counts[artifact] += 1
        names.append(f"{artifact} #{counts[artifact]}" if counts[artifact] > 1 else str(artifact))
    return names


@contextmanager
def _images(options: argparse.Namespace) -> Iterator[ImageFiles]:
    if options.images:
        yield find_images(options.images, options.num_images)
    else:
        with tempfile.TemporaryDirectory() as folder:
            yield generate_images(Path(folder), options.num_images)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m runtime.benchmark",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "artifacts",
        nargs="+",
        type=parse_given,
        metavar="artifact",
        help="deployed models; m.onnx@cpu: with that backend",
    )
    parser.add_argument("--images", nargs="+", type=Path, help="images or folders of them (else generated ones)")
    parser.add_argument(
        "--num-images", "--pictures", type=int, default=32, help="only the first N images (%(default)s)"
    )
    parser.add_argument("--batch", nargs="+", type=int, default=[1, 8], help="batch sizes (1 8)")
    parser.add_argument("--rounds", type=int, default=5, help="how often every image is taken (%(default)s)")
    parser.add_argument("--warmup", type=int, default=1, help="rounds before these, not counted (%(default)s)")
    parser.add_argument("--pair", action="store_true", help="alternate between the artifacts; print ratios")
    parser.add_argument("--json", type=Path, help="write figures and conditions here")
    parser.add_argument("--plot", type=Path, help="draw them here, a .png (needs matplotlib)")
    add_backend_arguments(parser)
    options = parser.parse_args(arguments)
    for name in ("num_images", "rounds"):
        if getattr(options, name) < 1:
            parser.error(f"--{name} must be at least 1")
    if options.warmup < 0:
        parser.error("--warmup must be at least 0")
    if min(options.batch) < 1:
        parser.error("--batch must be at least 1")
    if options.pair and len(options.artifacts) < 2:
        parser.error("--pair compares at least two artifacts; give one twice to see how far two equal ones differ")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code, raises UserError."""
    options = _parse(arguments)
    for path in (options.json, options.plot):
        if path is not None:
            require_writable(path)
    if options.plot is not None:
        require_matplotlib()
    with _images(options) as image_files:
        for line in image_files.skipped:
            print(f"warning: skipped {line}", file=sys.stderr)
        report = run(options, image_files, command_line(arguments, "runtime.benchmark"))
    try:
        if options.json is not None:
            atomic_write(options.json, as_json(report))
        if options.plot is not None:
            plot(report, options.plot)
    finally:  # a full disk must not cost the figures
        print(report_as_text(report))
        for line in warnings(report):
            print(f"warning: {line}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    run_main(main)
