"""The paper in miniature at a GPU's size: `train.reproduce`'s crossings and 9 anchors, full width, 20,000 images.

The images are drawn by all cores (about 30 s with 16 of them) and lie on the device; each system is trained from random
weights with one seed after the other, about 35 s each on an H100, and evaluated by the runtime's COCO evaluation on
2000 other images (about 10 s). The times are estimates until a system has been trained: then its time decides whether
the next one still fits.
"""

from __future__ import annotations

import gc
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from runtime.coco import load_coco
from runtime.machine.processor import processors
from runtime.manifest import Preprocess
from train import shapes
from train.config import Backbone, Config, Head, Pyramid
from train.reproduce.systems import LEVELS, System, configure, systems
from train.trainer.loop import train_detector
from train.trainer.run_log import LOG, read_log

from .device_data import DeviceImages
from .step import Record, begin

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
    seconds: float = 55  # of a system, until one was timed


REHEARSAL = Size(train=24, val=6, side=96, stem_channels=8, channels=16, steps=2, batch=4, seconds=1)


def main(arguments: Sequence[str] | None = None) -> None:
    """The step: draw the images, then train the systems seed by seed."""
    record = begin(__doc__, arguments)
    if not record.rehearsal and not torch.cuda.is_available():
        record.skip(TABLE, "torch finds no CUDA device")
        return
    size = REHEARSAL if record.rehearsal else Size()
    wanted = [
        (system, seed)
        for seed in range(1 if record.rehearsal else SEEDS)
        for system in systems()
        if system.part in ("crossings", "anchors") and not record.has(TABLE, system=system.key, seed=seed)
    ]
    with record.part("images"):
        if wanted:
            run(record, size, wanted)
    record.save()


def run(record: Record, size: Size, wanted: Sequence[tuple[System, int]]) -> None:
    """Draw the images and train the systems with their seeds, as many as there is time for."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    threads = max(1, processors())
    started = time.monotonic()
    folder = _FOLDER.with_name(f"{_FOLDER.name}_{size.train}_{size.side}").absolute()
    wanted_images = shapes.Settings(train=size.train, val=size.val, size=size.side)
    shapes.generate(folder, wanted_images, processes=1 if record.rehearsal else threads)
    drawn = time.monotonic()
    pre = preprocess(size)
    images = DeviceImages(load_coco(folder / "train.json", folder / "train"), size.side, pre.pad_value, device, threads)
    record.forget("images")
    record.row(
        "images",
        training=size.train,
        validation=size.val,
        side_px=size.side,
        seconds_to_draw=drawn - started,
        seconds_to_load=time.monotonic() - drawn,
        device_mib=images.images.nbytes / 2**20,
        processes=threads,
    )
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
