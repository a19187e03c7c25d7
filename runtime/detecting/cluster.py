"""Detects on images on a Ray cluster: each actor has a detector, and works through a few images at a time."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..batching import cut
from ..cluster.model import ClusterModel
from ..cluster.pool import MOST_TASKS, Pool, run_tasks
from ..detection_files import DetectionFiles
from ..errors import UserError
from ..images.sources import Source
from ..images.stored import RowGroup, read_group
from .images import DetectSettings, detect_images

BATCHES = 8  # of a task: few are lost with an actor, and loading overlaps the network within a task


@dataclass(frozen=True)
class ImagesJob:
    """Detects on images; a task is a list of paths, or a row group of a Parquet file."""

    model: ClusterModel
    settings: DetectSettings

    def open(self) -> Callable[[Any], str]:
        """Open the detector; the function gives a list of ["row", …] and ["skip", …] in the images' order."""
        detector, _ = self.model.open()

        def answer(task: dict[str, Any]) -> str:
            sources = list(_sources(task))
            found = _Collected()
            detect_images(detector, sources, Path(), DetectionFiles([found]), self.settings)
            return json.dumps(found.entries, ensure_ascii=False)

        return answer


class _Collected:
    """Keeps what a writer would write."""

    def __init__(self) -> None:
        self.entries: list[tuple[str, dict[str, Any]]] = []

    def add(self, row: dict[str, Any]) -> None:
        self.entries.append(("row", row))

    def skip(self, entry: dict[str, str]) -> None:
        self.entries.append(("skip", entry))


def _sources(task: dict[str, Any]) -> Iterator[Source]:
    for path in task.get("paths", ()):
        yield Source(Path(path), path, False)
    if "group" in task:
        for name, data in read_group(RowGroup(*task["group"])):
            yield Source(Path(name), name, False, data)


def plan_tasks(sources: Sequence[Source], groups: Sequence[RowGroup], batch: int) -> list[dict[str, Any]]:
    """The tasks for image files, and then those for row groups. Nodes have another working folder: paths are whole."""
    size = max(batch * BATCHES, -(-len(sources) // MOST_TASKS))
    pieces = cut([str(source.path.absolute()) for source in sources], size)
    whole = [group._replace(file=str(Path(group.file).absolute())) for group in groups]
    return [*({"paths": list(piece)} for piece in pieces), *({"group": list(group)} for group in whole)]


def detect_images_on_cluster(
    ray: Any,
    pool: Pool,
    model: ClusterModel,
    sources: Sequence[Source],
    groups: Sequence[RowGroup],
    results: DetectionFiles,
    settings: DetectSettings,
    progress: Callable[[int], object] = lambda _: None,
) -> None:
    """As `detect_images`, by the actors of a pool and without drawing; then on the images that row groups hold.

    `results` gets the images in their order. Raises UserError, ClusterError.
    """
    tasks = plan_tasks(sources, groups, settings.batch)
    given = iter(sources)
    for task, answer in zip(tasks, run_tasks(ray, pool, ImagesJob(model, settings), tasks), strict=True):
        entries = json.loads(answer)
        for kind, entry in entries:
            name = str(next(given).path) if "paths" in task else entry["file"]
            if kind == "row":
                results.add({**entry, "file": name})
            else:
                results.skip(Path(name), UserError(entry["reason"].replace("image data", name, 1)))
        progress(len(entries))
