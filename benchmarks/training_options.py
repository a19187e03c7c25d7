"""Measures what mosaics, mixed scales, repeat-factor sampling and early stopping do to AP, over several seeds.

    python benchmarks/training_options.py --out runs/options --shapes data/shapes --bccd BCCD [--processes 2]
    python benchmarks/training_options.py --out runs/options --table

Every run of training is a process of one thread and ends with a line in `results.jsonl`. The same command goes on where
an earlier one was ended. Runs with the name `plain` are evaluated ten times, so that the table says what early stopping
would have done: an evaluation changes nothing in the training, and a run that stops early is the beginning of one that
does not. With `--table` nothing is trained.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import torch

from runtime.coco import load_coco
from runtime.detector import Detector
from runtime.files import atomic_write
from runtime.training_log import LOG, read_log
from train.checkpoint import load_detector
from train.config import Config, Data
from train.config.overrides import override
from train.config.recipes import atss_lite0, atss_quick
from train.trainer.device import pick_precision
from train.trainer.evaluation import TorchBackend, evaluate_distributed
from train.trainer.loop import train_detector

RARE = ("star", "ring")  # classes of `tail` that most images are dropped of
RARE_IMAGES = 20  # that it keeps of them, beside all images without one
SMALL = 200  # images of `small`
EVALUATIONS = 10  # of a plain run
RESULTS = "results.jsonl"
PATIENCES = (1, 2, 3)

MOSAIC: Mapping[str, Mapping[str, Any]] = {
    "mosaic": {"augment.mosaic": 1.0, "augment.mosaic_until": 1.0},
    "mosaic to 80 %": {"augment.mosaic": 1.0, "augment.mosaic_until": 0.8},
    "half mosaic": {"augment.mosaic": 0.5, "augment.mosaic_until": 1.0},
}
VARIANTS: Mapping[str, Mapping[str, Mapping[str, Any]]] = {  # settings by data set and name
    "bccd": {
        "plain": {},
        "mosaic": MOSAIC["mosaic"],
        "mosaic to 80 %": MOSAIC["mosaic to 80 %"],
        "repeat": {"data.repeat_threshold": 1.0},
        "scales": {"augment.short_side_min": 160, "augment.short_side_max": 320},
    },
    "small": {"plain": {}, **MOSAIC, "scales": {"augment.short_side_min": 107, "augment.short_side_max": 213}},
    "tail": {"plain": {}, "repeat": {"data.repeat_threshold": 0.3}},
}
STEPS = {"bccd": 500, "small": 400, "tail": 400}


@dataclass(frozen=True)
class Job:
    """One run of training."""

    data: str
    variant: str
    seed: int

    @property
    def name(self) -> str:
        """The name of the run's folder."""
        return f"{self.data}-{self.variant.replace(' %', '').replace(' ', '-')}-{self.seed}"


def jobs(seeds: int) -> list[Job]:
    """All runs, seed by seed, so that a measurement that is cut short has whole seeds."""
    return [Job(data, name, seed) for seed in range(seeds) for data in VARIANTS for name in VARIANTS[data]]


def write_subsets(shapes: Path, out: Path) -> None:
    """Write the annotation files of `small` and `tail` into `out`, from those of the folder of `shapes`."""
    content = json.loads((shapes / "train.json").read_text())
    names = {category["id"]: category["name"] for category in content["categories"]}
    with_rare = {a["image_id"] for a in content["annotations"] if names[a["category_id"]] in RARE}
    ids = [image["id"] for image in content["images"]]
    rare = set([i for i in ids if i in with_rare][:RARE_IMAGES])
    for name, kept in (("small", set(ids[:SMALL])), ("tail", rare.union(i for i in ids if i not in with_rare))):
        images = [image for image in content["images"] if image["id"] in kept]
        annotations = [a for a in content["annotations"] if a["image_id"] in kept]
        text = json.dumps({**content, "images": images, "annotations": annotations})
        atomic_write(out / f"{name}.json", text)


def steps_of(data: str, share: float) -> int:
    """The steps of a run on a data set, with `share` of the usual number."""
    return max(EVALUATIONS, round(STEPS[data] * share))


def configure(job: Job, options: argparse.Namespace) -> Config:
    """The configuration of a run."""
    base = atss_lite0() if job.data == "bccd" else atss_quick()
    steps = steps_of(job.data, options.share)
    if job.data == "bccd":
        train = options.bccd / "trainval.json", options.bccd / "images"
        val = options.bccd / "test.json", options.bccd / "images"
    else:
        train = options.out / f"{job.data}.json", options.shapes / "train"
        val = options.shapes / "val.json", options.shapes / "val"
    data = Data(*map(str, (*train, *val)), workers=0)
    config = replace(
        base,
        data=data,
        schedule=replace(base.schedule, steps=steps),
        run=replace(
            base.run,
            seed=job.seed,
            log_every=50,
            checkpoint_every=50,
            evaluate_every=steps // EVALUATIONS if job.variant == "plain" else steps,
            evaluate_limit=0,
        ),
    )
    return override(config, VARIANTS[job.data][job.variant])


def work(job: Job, options: argparse.Namespace) -> None:
    """Train one run, score it, and print its result as a line of JSON."""
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    config, folder = configure(job, options), options.out / job.name
    began = time.process_time()
    done = train_detector(config, folder, resume=True)
    seconds = time.process_time() - began
    loaded = load_detector(done.last)
    dataset = load_coco(config.data.val_json, config.data.val_images)
    detector = Detector(TorchBackend(loaded.detector, loaded.config, loaded.classes))
    metrics = evaluate_distributed(detector, dataset, progress=False).metrics
    curve = [(line["step"], line["AP"]) for line in read_log(folder / LOG) if line["kind"] == "val"]
    result = {
        "data": job.data,
        "variant": job.variant,
        "seed": job.seed,
        "steps": done.steps,
        "precision": str(pick_precision(config)).removeprefix("torch."),
        "cpu_seconds": round(seconds, 1),  # of this process: a run that was resumed has more
        "metrics": metrics.values,
        "per_class": metrics.per_class,
        "curve": curve,
    }
    print(json.dumps(result), flush=True)


def start(job: Job, options: argparse.Namespace) -> None:
    """Run a job in a process of its own, and append its result to the results."""
    began = time.monotonic()
    command = [sys.executable, __file__, *sys.argv[1:], "--job", job.name]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    folder = options.out / job.name
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "errors.txt").open("ab") as errors:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment, check=False)
    if done.returncode:
        print(f"{job.name}: failed, see {folder / 'errors.txt'}", flush=True)
        return
    line = done.stdout.splitlines()[-1]
    with (options.out / RESULTS).open("a") as file:
        file.write(line + "\n")
    ap = 100 * json.loads(line)["metrics"]["AP"]
    print(f"{job.name}: AP {ap:.1f}, {time.monotonic() - began:.0f} s, load {os.getloadavg()[0]:.1f}", flush=True)


def read_results(out: Path) -> list[dict[str, Any]]:
    """The lines of the results so far."""
    path = out / RESULTS
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def table(results: list[dict[str, Any]]) -> Iterator[str]:
    """Markdown: mean ± sample standard deviation of AP over the seeds, and what early stopping would have done."""
    yield "| data | settings | AP | AP50 | APs | rare classes' AP | seeds | processor s |"
    yield "| --- | --- | --- | --- | --- | --- | --- | --- |"
    for data, variants in VARIANTS.items():
        rare = ("Platelets",) if data == "bccd" else RARE
        for variant in variants:
            rows = [row for row in results if (row["data"], row["variant"]) == (data, variant)]
            if not rows:
                continue
            cells = [_spread([row["metrics"][name] for row in rows]) for name in ("AP", "AP50", "APs")]
            cells.append(_spread([statistics.mean(row["per_class"][name] for name in rare) for row in rows]))
            seconds = statistics.median(row["cpu_seconds"] for row in rows)
            yield f"| {data} | {variant} | {' | '.join(cells)} | {len(rows)} | {seconds:.0f} |"
    yield ""
    yield "| data | patience | steps done | AP at the stop − at the end |"
    yield "| --- | --- | --- | --- |"
    for data in VARIANTS:
        rows = [row for row in results if row["data"] == data and row["variant"] == "plain"]
        for patience in PATIENCES if rows else ():
            stops = [stopped(row["curve"], patience) for row in rows]
            share = statistics.mean(step / row["curve"][-1][0] for (step, _), row in zip(stops, rows, strict=True))
            lost = [ap - row["curve"][-1][1] for (_, ap), row in zip(stops, rows, strict=True)]
            yield f"| {data} | {patience} of {EVALUATIONS} | {100 * share:.0f} % | {_spread(lost)} |"


def stopped(curve: list[tuple[int, float]], patience: int) -> tuple[int, float]:
    """The step at which early stopping ends a run with these evaluations, and the AP of its best checkpoint."""
    best, since = -1.0, 0
    for step, ap in curve:
        best, since = (ap, 0) if ap > best else (best, since + 1)
        if since >= patience:
            return step, best
    return curve[-1][0], best


def _spread(values: list[float]) -> str:
    mean = f"{100 * statistics.mean(values):.1f}"
    return f"{mean} ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else mean


def main() -> None:
    """Train what is left and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs and of their results")
    parser.add_argument("--shapes", type=Path, default=Path("data/shapes"), help="folder of the drawn data set")
    parser.add_argument("--bccd", type=Path, help="folder with trainval.json, test.json, images/ (default: no bccd)")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--processes", type=int, default=2, help="trainings at once")
    parser.add_argument("--share", type=float, default=1.0, help="of the usual steps")
    parser.add_argument("--table", action="store_true", help="train nothing, print the table of what is done")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    options = parser.parse_args()
    all_jobs = [job for job in jobs(options.seeds) if options.bccd or job.data != "bccd"]
    if options.job:
        work(next(job for job in all_jobs if job.name == options.job), options)
        return
    if not options.table:
        options.out.mkdir(parents=True, exist_ok=True)
        write_subsets(options.shapes, options.out)
        before = read_results(options.out)
        if any(row["steps"] != steps_of(row["data"], options.share) for row in before):
            parser.error(f"{options.out / RESULTS} has runs of another --share; give another --out")
        done = {(row["data"], row["variant"], row["seed"]) for row in before}
        left = [job for job in all_jobs if (job.data, job.variant, job.seed) not in done]
        with ThreadPoolExecutor(options.processes) as pool:
            list(pool.map(lambda job: start(job, options), left))
    print("\n".join(table(read_results(options.out))))


if __name__ == "__main__":
    main()
