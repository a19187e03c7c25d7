"""The paper in miniature at a GPU's size: `train.reproduce`'s crossings and 9 anchors, full width, 20,000 images.

The images are drawn and decoded by all cores and lie on the device. Each system is trained from random weights with one
seed after the other and evaluated by the runtime's COCO evaluation on 2000 other images. A small network leaves a large
GPU idle between its kernels, so several processes train at once (`--processes`), each its share of the systems. The
first system's time is an estimate; then the last one's decides whether the next still fits.
"""

from __future__ import annotations

import argparse
import gc
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from runtime.coco import load_coco
from runtime.machine.processor import processors
from runtime.manifest import Preprocess
from runtime.training_log import LOG, read_log
from train import shapes
from train.config import Backbone, Config, Head, Pyramid
from train.reproduce.systems import LEVELS, System, configure, systems
from train.trainer.loop import train_detector

from .device_data import DeviceImages, decode
from .step import Record, begin
from .steps import read_figures

TABLE = "the paper in miniature"
SEEDS = 3
_FOLDER = Path("runs/gpu_report_shapes")  # drawn once for all runs; not part of the report


@dataclass(frozen=True)
class Size:
    """The size of the experiment."""

    train: int = 20_000  # images
    val: int = 2000  # images
    side: int = 320  # px, of the images' longer side and of the crops
    stem_channels: int = 64  # a full ResNet-18
    channels: int = 128  # of the pyramid
    steps: int = 1600  # 5.1 passes over the images
    batch: int = 64
    seconds: float = 190  # of a system, until one was timed; of four at once on an H200


REHEARSAL = Size(train=24, val=6, side=96, stem_channels=8, channels=16, steps=2, batch=4, seconds=1)


def main(arguments: Sequence[str] | None = None) -> None:
    """The step: draw the images, then train the systems seed by seed."""
    own = argparse.ArgumentParser(add_help=False)
    own.add_argument("--processes", type=int, help="trainings at once (default: 4; 1 in a rehearsal)")
    own.add_argument("--share", type=int, nargs=2, metavar=("I", "N"), help="every N-th training from I on, alone")
    given, rest = own.parse_known_args(arguments)
    record = begin(__doc__, rest)
    if not record.rehearsal and not torch.cuda.is_available():
        record.skip(TABLE, "torch finds no CUDA device")
        return
    size = REHEARSAL if record.rehearsal else Size()
    first, every = given.share or (0, 1)
    seeds = range(1 if record.rehearsal else SEEDS)
    share = [(system, seed) for seed in seeds for system in ordered(systems())][first::every]
    wanted = [(system, seed) for system, seed in share if not record.has(TABLE, system=system.key, seed=seed)]
    with record.part("images"):
        if wanted:
            data = draw(record, size)
            processes = given.processes or (1 if record.rehearsal else 4)
            if given.share is None and processes > 1:
                share_out(record, processes)
            else:
                run(record, size, wanted, data)
    record.save()


def ordered(found: Sequence[System]) -> list[System]:
    """The systems of the crossings and of 9 anchors, those first whose comparison tells most."""
    first = ("atss-box", "iou-box", "atss-point", "lite-point", "atss-box-a9", "iou-box-a9")
    chosen = [system for system in found if system.part in ("crossings", "anchors")]
    return sorted(chosen, key=lambda system: first.index(system.key) if system.key in first else len(first))


def draw(record: Record, size: Size) -> Path:
    """Draw and decode the images, once for all processes and runs. Returns their folder."""
    threads = max(1, processors())
    started = time.monotonic()
    folder = _FOLDER.with_name(f"{_FOLDER.name}_{size.train}_{size.side}").absolute()
    wanted = shapes.Settings(train=size.train, val=size.val, size=size.side)
    shapes.generate(folder, wanted, processes=1 if record.rehearsal else threads)
    drawn = time.monotonic()
    pixels = decode(
        load_coco(folder / "train.json", folder / "train"),
        size.side,
        preprocess(size).pad_value,
        threads,
        _pixels(folder),
    )
    record.forget("images")
    record.row(
        "images",
        training=size.train,
        validation=size.val,
        side_px=size.side,
        seconds_to_draw=drawn - started,
        seconds_to_decode=time.monotonic() - drawn,
        mib=pixels.nbytes / 2**20,
        processes=threads,
    )
    return folder


def _pixels(folder: Path) -> Path:
    return folder / "pixels.npy"


def share_out(record: Record, processes: int) -> None:
    """Train in several processes, each with a record of its own beside this one's, and take their rows as they come."""
    files = [record.path.with_suffix(f".{index}.json") for index in range(processes)]
    running = []
    for index, file in enumerate(files):
        command = [sys.executable, "-m", __spec__.name, "--json", str(file), *["--rehearse"] * record.rehearsal]
        share = ["--share", str(index), str(processes), "--minutes", f"{record.seconds_left / 60:.2f}"]
        running.append(subprocess.Popen([*command, *share]))
    while any(process.poll() is None for process in running):
        time.sleep(2)
        merge(record, files)
    merge(record, files)
    for index, process in enumerate(running):
        if process.returncode:
            record.fail(f"process {index}", f"ended with code {process.returncode}")


def merge(record: Record, files: Sequence[Path]) -> None:
    """Add to a record what the records in `files` have and it lacks."""
    for file in files:
        content = read_figures(file)
        for row in content.get("tables", {}).get(TABLE, []):
            if not record.has(TABLE, system=row["system"], seed=row["seed"]):
                record.row(TABLE, **row)
        record.failures |= content.get("failures", {})
        record.not_run |= content.get("not_run", {})
        record.cut |= content.get("cut", False)
    record.save()


def run(record: Record, size: Size, wanted: Sequence[tuple[System, int]], folder: Path) -> None:
    """Train the systems with their seeds, as many as there is time for, on the images in `folder`."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dataset = load_coco(folder / "train.json", folder / "train")
    images = DeviceImages(dataset, np.load(_pixels(folder), mmap_mode="r"), preprocess(size).pad_value, device)
    seconds = size.seconds
    for position, (system, seed) in enumerate(wanted):
        if not record.has_time(seconds):
            for left, number in wanted[position:]:
                record.skip(f"{left.key}, seed {number}", f"a training takes {seconds:.0f} s, and no time was left")
            return
        begun = time.monotonic()
        with record.part(f"{system.key}, seed {seed}"):
            train(record, size, system, seed, folder, images, device)
            seconds = 1.05 * (time.monotonic() - begun)
        gc.collect()
        torch.cuda.empty_cache()


def train(
    record: Record, size: Size, system: System, seed: int, data: Path, images: DeviceImages, device: torch.device
) -> None:
    """Train a system with a seed and record its AP."""
    config = settings(size, system, seed, data, device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        train_detector(config, Path(folder), make_batches=images)
        lines = read_log(Path(folder) / LOG)
    seconds = time.monotonic() - started
    metrics = [line for line in lines if line["kind"] == "val"][-1]
    last = [line for line in lines if line["kind"] == "train"][-1]
    training = size.steps * size.batch / last["images_per_second"]
    record.row(
        TABLE,
        system=system.key,
        positives=system.label,
        regress_from=system.start,
        seed=seed,
        AP=100 * metrics["AP"],
        AP50=100 * metrics["AP50"],
        AP75=100 * metrics["AP75"],
        paper_AP=system.paper_ap,
        loss=last["total"],
        steps=size.steps,
        batch=size.batch,
        images=size.train,
        precision=config.run.precision,
        seconds_of_training=training,
        seconds_with_evaluation=seconds,
        images_per_s=last["images_per_second"],
        memory_mib=torch.cuda.max_memory_allocated() / 2**20 if device.type == "cuda" else None,
    )


def preprocess(size: Size) -> Preprocess:
    """The size that `shapes` draws."""
    return Preprocess(short_side=size.side * 3 // 4, long_side=size.side)


def settings(size: Size, system: System, seed: int, data: Path, device: torch.device) -> Config:
    """`train.reproduce`'s configuration of a system, with a full-width network from random weights on the device."""
    base = configure(system, seed, data, Path("none"), size.steps)
    pre = preprocess(size)
    return replace(
        base,
        preprocess=pre,
        model=replace(
            base.model,
            backbone=Backbone("resnet18", weights="none", stem_channels=size.stem_channels),
            pyramid=Pyramid(channels=size.channels, levels=LEVELS),
            head=Head(convolutions=2, group_norm_groups=8),
        ),
        augment=replace(
            base.augment,
            short_side_min=round(0.8 * pre.short_side),
            short_side_max=round(1.25 * pre.short_side),
            crop=(size.side, size.side),
        ),
        schedule=replace(base.schedule, batch=size.batch, learning_rate=1e-3),
        run=replace(
            base.run,
            device="cuda" if device.type == "cuda" else "cpu",
            precision="bf16",
            log_every=100,
            checkpoint_every=size.steps,
        ),
    )


if __name__ == "__main__":
    main()
