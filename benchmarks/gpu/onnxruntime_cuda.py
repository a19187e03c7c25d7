"""The deployed ONNX files through ONNX Runtime's CUDA provider: accuracy, speed, the pipeline, and what limits it.

    python -m benchmarks.gpu.onnxruntime_cuda --json step.json --minutes 6 [--work FOLDER] [--rehearse]
    python -m benchmarks.gpu.onnxruntime_cuda --prepare FOLDER [--rehearse]

The files that it runs are made in the folder --work (default: beside the JSON) and reused: a small detector that is
trained on drawn images, and `atss_r50_fpn_1x` with random weights and COCO-like scores, in every precision and form.
--prepare makes the small ones, which may travel to a machine with a GPU. A rehearsal runs all with small sizes through
the CPU's provider.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import torch

from benchmarks.evaluate_benchmark import detect, evaluate, repeated
from benchmarks.gpu.model_files import (
    FULL,
    REHEARSAL,
    Files,
    Sizes,
    large_files,
    network_file,
    picture_set,
    small_files,
)
from benchmarks.gpu.ort_sessions import bound_side, open_raw
from benchmarks.gpu.step import Record, begin
from benchmarks.precision_table import ALIKE, count_alone
from benchmarks.random_detectors import photographs, torchvision_model
from benchmarks.sides import Side, alternate, eager_side, our_side, times_as_fast
from export.onnx_model.emulation import emulate
from export.verification.matching import EXACT
from runtime.backends import BackendError, open_backend
from runtime.coco import load_coco_with_truth, score
from runtime.coco.results import Results
from runtime.coco.run import RunSettings, detect_dataset
from runtime.detector import Detector
from runtime.machine.processor import processors

BATCHES = (8, 1, 16, 4, 2)  # the most asked for first
ROUNDS = 7
NMS_COUNT = "num_detections"
GROUPS = {  # the sides of a comparison; the sessions of one fit a GPU's memory together
    "fp32": ("fp32 gpu", "fp32 cpu", "fp32 gpu, split norms"),
    "half": ("fp16 gpu", "fp16 cpu", "bf16 gpu"),
    "int8": ("int8 gpu", "int8 cpu"),
}


class Setting(NamedTuple):
    """Where and how much is measured."""

    work: Path
    sizes: Sizes
    backend: str  # of the runtime: cuda, in a rehearsal cpu
    device: str  # of memory and torch: cuda or cpu
    batches: Sequence[int]
    rounds: int


def accuracy(record: Record, setting: Setting) -> None:
    """AP of the small detector's files on drawn images, in the provider and as the files' numbers say."""
    files = small_files(setting.work, setting.sizes)
    for name, text in files.failed.items():
        record.fail(f"making {name}", text)
    data = setting.work / "shapes"
    dataset, truth = load_coco_with_truth(data / "val.json", data / "val")
    base: tuple[float, Results] | None = None

    def measure(name: str, path: Path, where: str, backend: str, fallback: bool) -> None:
        nonlocal base
        with Detector(path, backend=backend, allow_saturation=True, allow_fallback=fallback) as detector:
            run = detect_dataset(detector, dataset, RunSettings(8))
            said = detector.backend.description
        ap = score(truth, run.results, run.image_ids).values["AP"]
        base = base or (ap, run.results)
        alone, total = count_alone(base[1], run.results, EXACT, 0.0)
        far, high = count_alone(base[1], run.results, ALIKE, 0.1)
        record.row(
            "accuracy",
            file=name,
            runs_in=where,
            AP=100 * ap,
            difference=100 * (ap - base[0]),
            unmatched=alone,
            detections=total,
            unlike_above_01=far,
            detections_above_01=high,
            backend=said,
        )

    measure("fp32 cpu", files.deployed["fp32 cpu"], "CPU", "cpu", False)
    for name, path in files.deployed.items():
        where = f"{setting.backend} provider"
        if record.has_time(20):
            with record.part(f"accuracy of {name}"):
                try:
                    measure(name, path, where, setting.backend, False)
                except BackendError:
                    # Where operators fall back to the CPU, the numbers count all the same.
                    if setting.backend == "cuda":
                        measure(name, path, f"{where}, with fallback", setting.backend, True)
                    raise
    with tempfile.TemporaryDirectory() as folder:
        for name in ("fp16 gpu", "bf16 gpu", "int8 gpu"):
            if name in files.deployed and record.has_time(20):
                with record.part(f"emulation of {name}"):
                    stand_in = Path(folder, "emulated.onnx")
                    stand_in.write_bytes(emulate(onnx.load(files.deployed[name])).SerializeToString())
                    measure(name, stand_in, "CPU, as the numbers say", "cpu", False)


def profile(record: Record, setting: Setting, table: str, files: dict[str, Path], batch: int, most: int) -> None:
    """Operators by provider (`placement`), and the `most` that take the longest, of each file."""
    height, width = setting.sizes.canvas_hw if table == "profile" else (192, 256)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "profile.json")
        paths = list(map(str, files.values()))
        command = ["-m", "benchmarks.gpu.ort_sessions", *paths, "--backend", setting.backend, "--batch", str(batch)]
        run_command([*command, "--canvas", str(height), str(width), "--json", str(out)], 240)
        found = json.loads(out.read_text(encoding="utf-8"))
    for name, path in files.items():
        rows = found[path.name]
        if isinstance(rows, str):
            record.fail(f"{table} of {name}", rows)
            continue
        on_cpu = {row["operator"]: row["nodes"] for row in rows if row["provider"] == "CPU"}
        copies = sum(row["nodes"] for row in rows if row["operator"].startswith("Memcpy"))
        nodes = {row["provider"]: 0 for row in rows}
        for row in rows:
            nodes[row["provider"]] += row["nodes"]
        total = sum(row["ms"] for row in rows)
        record.row("placement", file=name, of=table, nodes=nodes, copies=copies, on_cpu=on_cpu, ms=total, batch=batch)
        for row in rows[:most]:
            record.row(table, file=name, batch=batch, **row, share=row["ms"] / total)


def run_command(arguments: Sequence[str], limit_s: float) -> str:
    """What a Python command prints. Raises RuntimeError with the end of what it said where it fails."""
    command = [sys.executable, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=limit_s, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(arguments[:2])} ended with {done.returncode}: {done.stderr[-600:]}")
    return done.stdout


def torchvision_sides(setting: Setting, images: np.ndarray) -> dict[str, Any]:
    """torchvision's models with the contexts that they run in."""
    half = partial(torch.autocast, setting.device, torch.float16 if setting.device == "cuda" else torch.bfloat16)
    found: dict[str, Any] = {}
    for kind in ("fcos", "retinanet"):
        model = torchvision_model(kind, images[:4], setting.device)
        found[f"torchvision {kind}, fp32"] = (model, None)
        found[f"torchvision {kind}, autocast"] = (model, half)
    return found


def speed(record: Record, setting: Setting, files: Files) -> None:
    """Images/s of network, whole graph and backend, beside torchvision's eager models; the sides alternate."""
    images = photographs(None, max(setting.batches), *setting.sizes.canvas_hw)
    theirs = torchvision_sides(setting, images)
    for group, names in GROUPS.items():
        known = {name: files.deployed[name] for name in names if name in files.deployed}
        with record.part(f"speed of {group}"), opened(record, setting, group, known) as (raw, backends):
            for batch in setting.batches:
                if record.has("speed", group=group, batch=batch):
                    continue
                if not record.has_time(10 + 4 * batch):
                    record.skip(f"speed of {group}, batch {batch}", "no time left")
                    continue
                sides = sides_of(setting, raw, backends, theirs, images[:batch])
                measure_sides(record, group, batch, sides, setting.rounds)


@contextmanager
def opened(
    record: Record, setting: Setting, group: str, files: dict[str, Path]
) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Sessions of networks and whole graphs, and backends of a group's files; those that don't start are failures."""
    raw: dict[str, Any] = {}
    backends: dict[str, Any] = {}
    tf32 = {"use_tf32": "1"} if setting.backend == "cuda" else None
    for number, (name, path) in enumerate(files.items()):
        with record.part(f"opening {name}"):
            raw[f"{name}: graph"] = open_raw(path, setting.backend)
            if number == 0 or name.startswith("bf16"):  # the others share the network
                raw[f"{name}: network"] = open_raw(network_file(path), setting.backend)
                backends[f"{name}: backend"] = open_backend(path, backend=setting.backend, allow_saturation=True)
            if group == "fp32" and number == 0:
                raw[f"{name}, TF32: graph"] = open_raw(path, setting.backend, tf32)
                raw[f"{name}, TF32: network"] = open_raw(network_file(path), setting.backend, tf32)
    try:
        yield raw, backends
    finally:
        for backend in backends.values():
            backend.close()
        raw.clear()
        gc.collect()
        if setting.device == "cuda":
            torch.cuda.empty_cache()


def sides_of(
    setting: Setting, raw: dict[str, Any], backends: dict[str, Any], theirs: dict[str, Any], images: np.ndarray
) -> dict[str, Side]:
    """All sides for a batch uint8 [B, H, W, 3]. torchvision's images lie on the device as float32."""
    sizes = np.full((len(images), 2), images.shape[1:3], np.int32)
    photos = [torch.from_numpy(image).to(setting.device).permute(2, 0, 1).contiguous() / 255 for image in images]
    sides: dict[str, Side] = {}
    for name, session in raw.items():
        is_graph = name.endswith(": graph")
        feed = {"images": images, "image_sizes": sizes} if is_graph else {"images": images}
        sides[name] = bound_side(session, feed, setting.device, NMS_COUNT if is_graph else None)
    sides |= {name: our_side(backend, images) for name, backend in backends.items()}
    for name, (model, half) in theirs.items():
        sides[name] = eager_side(model, photos, half) if half else eager_side(model, photos)
    return sides


def measure_sides(record: Record, group: str, batch: int, sides: dict[str, Side], rounds: int) -> None:
    """Rows of alternating sides: milliseconds, images/s, and how many times as fast as each of torchvision's."""
    part = f"speed of {group}, batch {batch}"
    times = alternate(sides, rounds, lambda name, error: record.fail(f"{part}: {name}", str(error)[:600]))
    others = [name for name in times.wall if name.startswith("torchvision")]
    for name, seconds in times.wall.items():
        middle = statistics.median(seconds)
        ratios = {f"× {other}": times_as_fast(times.wall, name, other) for other in others}
        record.row(
            "speed",
            group=group,
            batch=batch,
            side=name,
            images_per_second=batch / middle,
            ms=1000 * middle,
            least_ms=1000 * min(seconds),
            detections=times.found[name],
            **({} if name in others else ratios),
        )


def pipeline(record: Record, setting: Setting, path: Path, name: str) -> None:
    """Images/s of `evaluate`, `detect`, the network's calls and loading alone, and which of them limits."""
    annotations = picture_set(setting.work, setting.sizes)
    with tempfile.TemporaryDirectory() as folder, Detector(path, backend=setting.backend) as detector:
        images, out = Path(folder, "images"), Path(folder, "out")
        images.mkdir()
        whole = repeated(annotations, annotations.parent, setting.sizes.files, images)
        count = setting.sizes.files
        paths = sorted(images.glob("*.jpg"))
        with ThreadPoolExecutor(min(16, processors())) as pool:
            started = time.perf_counter()
            for _ in pool.map(lambda one: detector.prepare(detector.load(one)), paths):
                pass
            loading = count / (time.perf_counter() - started)
        dataset, _ = load_coco_with_truth(whole, images)
        for batch in setting.batches:
            if record.has("pipeline", file=name, batch=batch) or not record.has_time(20):
                continue
            detect_dataset(detector, dataset, RunSettings(batch, limit=4 * batch))  # warms this batch up
            run = detect_dataset(detector, dataset, RunSettings(batch))
            seconds = {}
            for command, work in (
                ("evaluate", lambda batch=batch: evaluate(detector, whole, images, batch)),
                ("detect", lambda batch=batch: detect(detector, images, out, batch)),
            ):
                started = time.perf_counter()
                work()
                seconds[command] = time.perf_counter() - started
            at_once = max(1, detector.concurrency)
            stages = {"loading": loading, "network": at_once * run.speed.network_images_per_second}
            record.row(
                "pipeline",
                file=name,
                batch=batch,
                images=count,
                processors=processors(),
                evaluate=count / seconds["evaluate"],
                detect=count / seconds["detect"],
                loading=loading,
                network_calls=run.speed.network_images_per_second,
                calls_at_once=at_once,
                limits=min(stages, key=lambda stage: stages[stage]),
            )


def on_device_images(record: Record, setting: Setting, path: Path) -> None:
    """Images that torch holds in the GPU's memory are found to hold what the same images on the host hold."""
    height, width = setting.sizes.canvas_hw
    images = list(photographs(None, 4, height * 3 // 4, width * 3 // 4))
    with Detector(path, backend=setting.backend) as detector:
        sides = {
            "NumPy's arrays": lambda: sum(map(len, detector.detect(images))),
            "torch's tensors": lambda: sum(map(len, detector.detect(tensors))),
        }
        tensors = [torch.from_numpy(image).to(setting.device) for image in images]
        differing = 0
        for one, other in zip(detector.detect(images), detector.detect(tensors), strict=True):
            differing += len(one) != len(other) or not np.allclose(one.boxes, other.boxes, atol=1)
        times = alternate(sides, setting.rounds)
    for name, seconds in times.wall.items():
        record.row(
            "images in the GPU's memory",
            images=name,
            images_per_second=len(images) / statistics.median(seconds),
            detections=times.found[name],
            images_that_differ=int(differing),
        )


def commands(record: Record, setting: Setting, path: Path) -> None:
    """What `runtime.doctor` and `runtime.benchmark` answer here."""
    with record.part("runtime.doctor"):
        record.row("doctor", **json.loads(run_command(["-m", "runtime.doctor", "--json"], 120)))
    with record.part("runtime.benchmark"), tempfile.TemporaryDirectory() as folder:
        out, pictures = Path(folder, "benchmark.json"), picture_set(setting.work, setting.sizes).parent
        batches = [str(batch) for batch in sorted(setting.batches) if batch in (1, 8, 16)]
        arguments = ["-m", "runtime.benchmark", str(path), "--images", str(pictures), "--batch", *batches]
        run_command([*arguments, "--rounds", "3", "--backend", setting.backend, "--json", str(out)], 200)
        report = json.loads(out.read_text(encoding="utf-8"))
        for figures in report["figures"]:
            record.row(
                "runtime.benchmark",
                batch=figures["batch"],
                pipeline=figures["pipeline_images_per_second"]["p50"],
                serial=figures["serial_images_per_second"]["p50"],
                stage_ms={stage: values["p50"] for stage, values in figures["stage_ms"].items()},
            )
        record.row("runtime.benchmark, the GPU", gpu=report["gpu"], machine=report["machine"])


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the step, the most valuable first."""
    own = argparse.ArgumentParser(add_help=False)
    own.add_argument("--work", type=Path)
    own.add_argument("--prepare", type=Path)
    given, rest = own.parse_known_args(arguments)
    if given.prepare is not None:
        found = small_files(given.prepare, REHEARSAL if "--rehearse" in rest else FULL)
        print(f"{len(found.deployed)} files in {given.prepare}; failed: {found.failed or 'none'}")
        return
    record = begin(__doc__, rest)
    work = given.work or record.path.with_suffix(".files")
    if record.rehearsal:
        setting = Setting(work, REHEARSAL, "cpu", "cpu", (2, 1), 2)
    elif torch.cuda.is_available():
        setting = Setting(work, FULL, "cuda", "cuda", BATCHES, ROUNDS)
    else:
        record.skip("everything", "torch sees no GPU here; --rehearse runs it on the CPU with small sizes")
        return
    run(record, setting)


def run(record: Record, setting: Setting) -> None:
    """All parts, the most valuable first; what the record holds is not measured again."""
    large: Files | None = None
    if not record.has("accuracy", runs_in="CPU, as the numbers say"):
        with record.part("accuracy"):
            record.tables.pop("accuracy", None)
            accuracy(record, setting)
    with record.part("making the large files"):
        started = time.perf_counter()
        large = large_files(setting.work, setting.sizes, setting.device)
        record.row("making the large files", seconds=time.perf_counter() - started, failed=large.failed)
    parts: list[tuple[str, float, Any]] = []
    if large is not None:
        half = large.deployed.get("fp32 gpu" if record.rehearsal else "fp16 gpu", large.deployed["fp32 cpu"])
        parts = [
            ("speed", 30, lambda: speed(record, setting, large)),
            ("pipeline", 30, lambda: pipeline(record, setting, half, half.name)),
            ("profile", 20, lambda: profile(record, setting, "profile", {half.name: half}, setting.batches[0], 12)),
            ("commands", 30, lambda: commands(record, setting, half)),
            ("images in the GPU's memory", 10, lambda: on_device_images(record, setting, half)),
        ]
    small = small_files(setting.work, setting.sizes).deployed
    parts.insert(2, ("placement", 30, lambda: profile(record, setting, "small profile", small, 1, 0)))
    for name, seconds, work in parts:
        if not record.has_time(seconds):
            record.skip(name, "no time left")
            continue
        with record.part(name):
            work()


if __name__ == "__main__":
    main()
