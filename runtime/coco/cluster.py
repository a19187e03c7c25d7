"""Evaluates a data set on a Ray cluster, in parts as `--shard` has them; the merged score is that of one process."""

from __future__ import annotations

import dataclasses
import io
import json
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..cluster.connection import connected
from ..cluster.model import ClusterModel, ModelFacts, describe_model, on_any_node
from ..cluster.options import ClusterOptions
from ..cluster.pool import MOST_TASKS, find_pool, needs_gpu, run_once, run_tasks
from ..files import sha256_file
from ..manifest import Manifest
from ..model_spec import ModelSpec
from ..tta import NO_TTA, TtaSettings, with_tta
from .classes import print_differences
from .dataset import CocoDataset
from .run import DatasetRun, RunSettings, plan_batches
from .shards import Part, detect_part, merge_parts, origin_of, parse_part, write_part_to

BATCHES = 4  # of a part: few are lost with an actor, and loading overlaps the network within a part


@dataclass(frozen=True)
class PartJob:
    """Detects on parts of a data set; a task is a part's number."""

    model: ClusterModel
    dataset: CocoDataset  # goes to the nodes once; they read no annotations
    settings: RunSettings
    tta: TtaSettings
    annotations_sha256: str
    parts: int

    def open(self) -> Callable[[int], str]:
        """Open the detector and plan the batches; the function gives a part as its file has it."""
        detector, sha256 = self.model.open()
        origin = origin_of(sha256, self.annotations_sha256, self.settings, self.tta)
        batches = plan_batches([with_tta(detector, self.tta)], self.dataset, self.settings.batch, self.settings.limit)

        def answer(number: int) -> str:
            settings = dataclasses.replace(self.settings, part=(number, self.parts))
            part = detect_part(detector, str(self.model.spec), origin, self.dataset, settings, self.tta, batches)
            text = io.StringIO()
            write_part_to(text, part)
            return text.getvalue()

        return answer


def detect_on_cluster(
    spec: ModelSpec,
    dataset: CocoDataset,
    cluster: ClusterOptions,
    settings: Callable[[Manifest], RunSettings],
    tta: TtaSettings = NO_TTA,
    options: Mapping[str, Any] | None = None,
    progress: Callable[[int], object] = lambda _: None,
) -> DatasetRun:
    """As `detect_dataset`, by a detector in each actor of a Ray cluster, whose nodes read the same paths.

    `settings` makes the run's settings from the model's manifest, which a node reads; `options` are fields of
    `BackendOptions`; `progress` is called with the number of images done since the last call. Raises as
    `detect_dataset`, and ClusterError.
    """
    given = dict(options or {})
    model = ClusterModel(on_any_node(spec), given)
    gpus = needs_gpu(spec, given.get("backend", "auto"))
    with connected(cluster.address) as ray:
        pool = find_pool(ray, cluster.actors, gpus)
        facts = run_once(ray, pool, describe_model, model)
        print(f"{facts.summary}; on {pool.actors} actors", flush=True)
        print_differences(facts.manifest, dataset)
        run = settings(facts.manifest)
        images = len(dataset) if run.limit is None else min(run.limit, len(dataset))
        job = PartJob(
            model,
            dataclasses.replace(dataset, json_path=dataset.json_path.absolute(), root=dataset.root.absolute()),
            dataclasses.replace(run, progress=False),
            tta,
            sha256_file(dataset.json_path),
            parts=max(1, min(MOST_TASKS, -(-images // (run.batch * BATCHES)))),
        )
        parts: list[tuple[Path, Part]] = []
        started = time.perf_counter()
        for number, text in enumerate(run_tasks(ray, pool, job, range(job.parts))):
            name = Path(f"part {number}/{job.parts}")
            part = parse_part(json.loads(text), name)
            parts.append((name, part))
            progress(len(part.head.image_ids) + len(part.head.skipped))
        seconds = time.perf_counter() - started
    _warn_of_backends(facts, [part for _, part in parts])
    merged = merge_parts(parts, dataset.json_path, dataset.image_ids)
    return merged._replace(speed=dataclasses.replace(merged.speed, seconds=seconds))


def _warn_of_backends(facts: ModelFacts, parts: list[Part]) -> None:
    """Say where actors ran other libraries or processors, whose scores differ in the sixth digit."""
    kinds = sorted({", ".join(text.split(", ")[:2]) for text in [facts.backend, *(p.head.backend for p in parts)]})
    if len(kinds) > 1:
        print(
            f"warning: the actors ran {' and '.join(kinds)}, whose scores differ in the sixth digit; name a --backend",
            file=sys.stderr,
        )
