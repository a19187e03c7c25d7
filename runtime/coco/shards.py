"""Evaluates a data set in parts, on several processes or machines, and merges the parts.

A part holds the results on every n-th batch, and describes model, data set and settings. A merge requires all n parts
of one evaluation, each once. Every batch is one of the whole run, so the merged score equals that of the whole run.

A part has ids as the data set numbers them, since it belongs to one annotation file; what is written of all parts
together has ids as that file has them.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TextIO

import numpy as np

from ..bounds import Batch, Bounds, Id, Items, Name, Positive, Seconds, Sha256, Side
from ..detector import Detector
from ..errors import UserError
from ..files import as_utf8, atomic_path, sha256_file
from ..images import MAX_PIXELS
from ..records import RecordError, record_from_dict
from ..tiling.settings import Tiles
from ..tta import NO_TTA, TtaSettings, with_tta
from .dataset import CocoDataset
from .format import CocoError
from .results import join_results
from .results_files import parse_results, write_rows
from .run import DatasetRun, RunSettings, Speed, detect_dataset, no_image_readable

VERSION = 1
MOST_PARTS = 10**6
PartNumber = Annotated[int, Bounds(0, MOST_PARTS)]


class ShardError(UserError):
    """The parts do not form one evaluation."""


@dataclass(frozen=True)
class Origin:
    """What all parts of one evaluation share."""

    artifact_sha256: Sha256
    annotations_sha256: Sha256
    batch: Batch
    limit: Positive | None
    scales: Annotated[tuple[Side, ...], Items(0, 1000)]  # of multi-scale testing; empty: none
    flip: bool
    vote: bool
    max_pixels: Annotated[int, Bounds(1, 10**13)]
    tiles: Tiles | None = dataclasses.field(default=None, metadata={"absent": None})


@dataclass(frozen=True)
class PartHead:
    """The beginning of a part's file; the results follow."""

    version: Annotated[int, Bounds(VERSION, VERSION)]
    index: PartNumber
    count: PartNumber
    artifact: Name
    backend: Name
    origin: Origin
    seconds: Seconds
    seconds_network: Seconds
    skipped: tuple[str, ...]
    image_ids: Annotated[tuple[Id, ...], Items(0, 10**9, distinct=True)]

    def conflicts(self) -> Iterator[tuple[str, str]]:
        """See `bounds.Conflicts`."""
        if self.index >= self.count:
            yield "index", f"less than count, here {self.count}"


@dataclass(frozen=True)
class Part:
    """One part of an evaluation: what it is a part of, and what was found."""

    head: PartHead
    run: DatasetRun


def origin_of(
    artifact_sha256: str, annotations_sha256: str, settings: RunSettings, tta: TtaSettings = NO_TTA
) -> Origin:
    """What the parts of an evaluation share, from the hashes of the model's and the annotations' files."""
    return Origin(
        artifact_sha256=artifact_sha256,
        annotations_sha256=annotations_sha256,
        batch=settings.batch,
        limit=settings.limit,
        scales=tta.scales,
        flip=tta.flip,
        vote=tta.vote,
        max_pixels=settings.max_pixels or MAX_PIXELS,
        tiles=tta.tiles,
    )


def detect_part(
    detector: Detector,
    model: str,
    origin: Origin,
    dataset: CocoDataset,
    settings: RunSettings,
    tta: TtaSettings = NO_TTA,
    batches: Sequence[Sequence[int]] | None = None,
) -> Part:
    """Detect on the part of the data set that `settings.part` names.

    `model` is the name of the deployed model's file. `batches` may be given if many parts are detected on: it is what
    `plan_batches` gives for the whole run. Raises as `detect_dataset`.
    """
    run = detect_dataset(with_tta(detector, tta), dataset, settings, batches)
    index, count = settings.part
    head = PartHead(
        version=VERSION,
        index=index,
        count=count,
        artifact=model,
        backend=detector.backend.description,
        origin=origin,
        seconds=run.speed.seconds,
        seconds_network=run.speed.seconds_network,
        skipped=run.speed.skipped,
        image_ids=tuple(run.image_ids),
    )
    return Part(head, run)


def parse_shard(text: str) -> tuple[int, int]:
    """Read "i/n" as (i, n), 0 ≤ i < n. Raises ShardError."""
    index, _, count = text.partition("/")
    digits = all(part.isdecimal() and len(part) <= len(str(MOST_PARTS)) for part in (index, count))
    if not (digits and int(index) < int(count) <= MOST_PARTS):
        raise ShardError(f"--shard is {text!r}, expected i/n with i from 0 to n − 1: 0/2 and 1/2 are the halves")
    return int(index), int(count)


def write_part(path: Path, part: Part) -> None:
    """Write a part's file. Raises WriteError."""
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        write_part_to(file, part)


def write_part_to(file: TextIO, part: Part) -> None:
    """Write what a part's file holds."""
    head = json.dumps({"shard": dataclasses.asdict(part.head)}, ensure_ascii=False)
    # A lone surrogate, of a file name that is no UTF-8, is escaped as JSON has it.
    file.write(as_utf8(head[:-1]) + ', "results": ')
    write_rows(file, part.run.results)
    file.write("}\n")


def is_part(content: Any) -> bool:
    """Whether a file's parsed content is a part, not plain results."""
    return isinstance(content, dict) and isinstance(content.get("shard"), dict)


def parse_part(content: Any, path: Path) -> Part:
    """The part in the parsed content of a file. Raises ShardError."""
    if not is_part(content):
        raise ShardError(f"{path}: not a part of an evaluation; expected a file that --shard i/n --results-out wrote")
    if content["shard"].get("version") != VERSION:
        raise ShardError(f"{path}: a part of another version of this toolkit; evaluate the shard again")
    try:
        head = record_from_dict(PartHead, content["shard"], str(path))
        results = parse_results(content.get("results"), path)
    except (RecordError, CocoError) as error:
        raise ShardError(f"{error}; evaluate the shard again") from error
    foreign = np.setdiff1d(results.image_ids, np.array(head.image_ids, np.int64))
    if len(foreign):
        raise ShardError(f"{path}: results of image {foreign[0]}, which the part did not run; evaluate the shard again")
    speed = Speed(len(head.image_ids), head.seconds, head.seconds_network, head.skipped)
    return Part(head, DatasetRun(results, list(head.image_ids), speed))


def merge_parts(parts: Sequence[tuple[Path, Part]], annotations: Path, image_ids: np.ndarray) -> DatasetRun:
    """Merge all parts of one evaluation into the result of the whole run.

    `image_ids` are those of the data set, in its order. Raises ShardError if a part is missing or given twice, or if
    parts differ in model, data set or settings, or do not belong to `annotations`.
    """
    first_path, first = parts[0]
    for path, part in parts:
        if part.head.count != first.head.count:
            raise ShardError(f"{path}: one of {part.head.count} parts, but {first_path} is one of {first.head.count}")
        for field in dataclasses.fields(Origin):
            theirs, ours = getattr(part.head.origin, field.name), getattr(first.head.origin, field.name)
            if theirs != ours:
                what = _NAMES.get(field.name, f"another {field.name} ({theirs} and {ours})")
                raise ShardError(f"{path}: a part with {what} than {first_path}; merge parts of one evaluation")
    if (given := sha256_file(annotations)) != first.head.origin.annotations_sha256:
        raise ShardError(
            f"{first_path}: a part with other annotations than {annotations} (SHA-256 {given[:12]}…); give the file "
            "that the parts were made with"
        )
    by_index: dict[int, Path] = {}
    for path, part in parts:
        if part.head.index in by_index:
            raise ShardError(f"{path} and {by_index[part.head.index]} are both part {_name(part)}; give each once")
        by_index[part.head.index] = path
    missing = sorted(set(range(first.head.count)) - by_index.keys())
    if missing:
        names = ", ".join(f"{index}/{first.head.count}" for index in missing[:5]) + (" …" if len(missing) > 5 else "")
        raise ShardError(f"{len(missing)} of {first.head.count} parts are missing: {names}; evaluate or add them")
    return _joined([part.run for _, part in parts], image_ids, "the parts")


def join_parts(parts: Sequence[DatasetRun], dataset: CocoDataset) -> DatasetRun:
    """Join the parts of a run that several processes shared."""
    return _joined(parts, dataset.image_ids, str(dataset.json_path))


def _joined(parts: Sequence[DatasetRun], image_ids: np.ndarray, source: str) -> DatasetRun:
    found = [image_id for part in parts for image_id in part.image_ids]
    if len(set(found)) != len(found) or not set(found) <= set(image_ids.tolist()):
        raise ShardError(f"{source}: images occur twice, or are not the data set's; evaluate the shards again")
    speeds = [part.speed for part in parts]
    skipped = tuple(line for speed in speeds for line in speed.skipped)
    if not found and skipped:
        raise no_image_readable(skipped)
    return DatasetRun(
        join_results((part.results for part in parts), image_ids),
        image_ids[np.isin(image_ids, found)].tolist(),
        Speed(len(found), max(s.seconds for s in speeds), sum(s.seconds_network for s in speeds), skipped),
    )


_NAMES = {"artifact_sha256": "another model", "annotations_sha256": "another data set"}


def _name(part: Part) -> str:
    return f"{part.head.index}/{part.head.count}"
