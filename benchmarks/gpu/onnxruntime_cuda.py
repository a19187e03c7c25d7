"""The deployed ONNX files through ONNX Runtime's CUDA provider: accuracy, speed, the pipeline, and what limits it.

    python -m benchmarks.gpu.onnxruntime_cuda --json step.json --minutes 6 [--work FOLDER] [--rehearse]
    python -m benchmarks.gpu.onnxruntime_cuda --prepare FOLDER [--large] [--rehearse]

The files that it runs are made in the folder --work (default: beside the JSON) and reused: a small detector that is
trained on drawn images, and `atss_r50_fpn_1x` with random weights and COCO-like scores, in every precision and form.
--prepare makes the small ones alone, which may travel to a machine with a GPU; with --large it makes the others. A
rehearsal runs everything with small sizes through the CPU's provider.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import torch

from benchmarks.evaluate_benchmark import detect, evaluate, repeated
from benchmarks.gpu.model_files import (
    FULL,
    REHEARSAL,
    Files,
    judged_on,
    large_files,
    picture_set,
    small_files,
)
from benchmarks.gpu.ort_speed import MAIN, VARIANTS, Setting, cuda_graphs, speed
from benchmarks.gpu.step import Record, begin
from benchmarks.precision_table import ALIKE, count_alone
from benchmarks.random_detectors import photographs
from benchmarks.sides import alternate
from export.onnx_model.emulation import emulate
from export.verification.matching import EXACT
from runtime.backends import BackendError
from runtime.coco import load_coco_with_truth, score
from runtime.coco.results import Results
from runtime.coco.run import RunSettings, detect_dataset
from runtime.detector import Detector
from runtime.machine.processor import processors

BATCHES = (8, 1, 16, 4, 2)  # the most asked for first
ROUNDS = 5
PROFILED = ("fp32 cpu", "fp32 gpu", "fp16 gpu", "int8 gpu")  # of the small files
SPEED_LEAVES = 0.45  # of the time that is left when speed is measured, to the pipeline, the profiles and the commands


def accuracy(record: Record, setting: Setting) -> None:
    """AP of the small detector's files on drawn images, in the provider and as the files' numbers say."""
    files = small_files(setting.work, setting.sizes)
    for name, text in files.failed.items():
        record.fail(f"making {name}", text)
    data = judged_on(setting.work, setting.sizes)
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
                except BackendError as error:
                    if name.startswith("bf16"):  # ONNX Runtime has no kernels for it; its emulation is measured below
                        record.skip(f"accuracy of {name}", str(error))
                        continue
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


def profile(record: Record, setting: Setting, table: str, files: dict[str, Path], batch: int, most: int = 12) -> None:
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


def doctor(record: Record) -> None:
    """What `runtime.doctor` answers here."""
    record.row("doctor", **json.loads(run_command(["-m", "runtime.doctor", "--json"], 120)))


def benchmark(record: Record, setting: Setting, path: Path) -> None:
    """What `runtime.benchmark` answers here."""
    with tempfile.TemporaryDirectory() as folder:
        out, pictures = Path(folder, "benchmark.json"), picture_set(setting.work, setting.sizes).parent
        batches = [str(batch) for batch in sorted(setting.batches[:3])]
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
    record.row("runtime.benchmark, conditions", gpu=report["gpu"], machine=report["machine"])


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the step, the most valuable first."""
    own = argparse.ArgumentParser(add_help=False)
    own.add_argument("--work", type=Path)
    own.add_argument("--prepare", type=Path)
    own.add_argument("--large", action="store_true")
    given, rest = own.parse_known_args(arguments)
    if given.prepare is not None:
        sizes, device = (REHEARSAL, "cpu") if "--rehearse" in rest else (FULL, best_device())
        found = large_files(given.prepare, sizes, device) if given.large else small_files(given.prepare, sizes)
        print(f"{len(found.deployed)} files in {given.prepare}; failed: {found.failed or 'none'}")
        return
    record = begin(__doc__, rest)
    work = given.work or record.path.with_suffix(".files")
    if record.rehearsal:
        setting = Setting(work, REHEARSAL, "cpu", "cpu", (2,), 1)
    elif best_device() == "cuda":
        setting = Setting(work, FULL, "cuda", "cuda", BATCHES, ROUNDS)
    else:
        record.skip("everything", "torch sees no GPU here; --rehearse runs it on the CPU with small sizes")
        return
    run(record, setting)


def best_device() -> str:
    """torch's name of the GPU, or of the CPU where there is none."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def run(record: Record, setting: Setting) -> None:
    """All parts, the most valuable first; what the record holds is not measured again."""
    with ThreadPoolExecutor(1) as beside:  # the large files are made while accuracy is measured
        command = ["-m", "benchmarks.gpu.onnxruntime_cuda", "--prepare", str(setting.work), "--large"]
        making = beside.submit(run_command, command + ["--rehearse"] * record.rehearsal, 300)
        if not record.has("accuracy", runs_in="CPU, as the numbers say"):
            with record.part("accuracy"):
                record.tables.pop("accuracy", None)
                accuracy(record, setting)
        with record.part("making the large files"):
            making.result()
    large, small = large_files(setting.work, setting.sizes, setting.device), Files({}, {})
    with record.part("making the small files"):
        small = small_files(setting.work, setting.sizes)
    for name, text in large.failed.items():
        record.fail(f"making {name} of the large detector", text)
    half = large.deployed.get("fp32 gpu" if record.rehearsal else "fp16 gpu", large.deployed["fp32 cpu"])
    shown = {name: small.deployed[name] for name in PROFILED if name in small.deployed}
    keep_s = SPEED_LEAVES * record.seconds_left
    parts: dict[str, tuple[float, Callable[[], None]]] = {
        "speed": (30, lambda: speed(record, setting, large, MAIN, keep_s)),
        "pipeline": (30, lambda: pipeline(record, setting, half, half.name)),
        "doctor": (15, lambda: doctor(record)),
        "runtime.benchmark": (30, lambda: benchmark(record, setting, half)),
        "profile": (20, lambda: profile(record, setting, "profile", {half.name: half}, setting.batches[0])),
        "images in the GPU's memory": (10, lambda: on_device_images(record, setting, half)),
        "small profile": (30, lambda: profile(record, setting, "small profile", shown, 1)),
        "speed, the rest": (30, lambda: speed(record, setting, large, MAIN)),
        "speed, variants": (30, lambda: speed(record, setting, large, VARIANTS)),
        # Last: a recording that fails may spoil what follows.
        "CUDA graph": (20, lambda: cuda_graphs(record, setting, half)),
    }
    for name, (seconds, work) in parts.items():
        if name in record.tables and name not in ("speed", "pipeline"):  # which go on where they stopped
            continue
        if name == "small profile" and not shown:
            record.skip(name, "the small files are missing")
            continue
        if not record.has_time(seconds):
            record.skip(name, "no time left")
            continue
        with record.part(name):
            work()


if __name__ == "__main__":
    main()
