"""LoadGen's settings for a scenario, derived from the model's speed in a warm-up.

Names, and the defaults of what is not set here, are LoadGen's own (`TestSettings`).
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, Literal

from ..detector import Detector
from ..images import Decoded
from ..names import unknown_name
from ..temporaries import scratch_folder

Scenario = Literal["SingleStream", "MultiStream", "Server", "Offline"]
SCENARIOS: tuple[Scenario, ...] = ("SingleStream", "MultiStream", "Server", "Offline")

# MLPerf Inference: every scenario runs for 600 s at least, Offline on 24576 images at least.
OFFICIAL_SECONDS, OFFICIAL_OFFLINE_SAMPLES = 600.0, 24576
QUERY_IMAGES = 8  # of a MultiStream query
# LoadGen needs 64 queries to tell the 90th percentile (SingleStream) with 99 % confidence, and 662 for the 99th
# (MultiStream); a run with fewer is invalid. Server needs more queries the more of them are late: 1157 allow four.
LEAST_QUERIES: dict[Scenario, int] = {"SingleStream": 64, "MultiStream": 662, "Server": 1157, "Offline": 1}
# Factors on the estimate of a short warm-up. SingleStream and MultiStream stop by the clock, so LoadGen may prepare
# more queries than needed. Offline runs all prepared queries; too few make the run too short, hence invalid.
SPARE_QUERIES, SPARE_OFFLINE = 2.0, 1.5
SERVER_LOAD = 0.4  # of the throughput, so that random queues stay short
SERVER_BATCH_SHARE = 0.5  # of the latency bound, for one batch; the rest is for waiting

WARMUP_SECONDS, WARMUP_CALLS, STREAM_BATCHES = 1.0, 3, 4


@dataclass(frozen=True)
class Estimate:
    """Speeds that a warm-up measured."""

    latency_s: dict[int, float]  # median of a query, by its number of images
    images_per_second: float  # Offline: of a stream in batches, the fastest; else 0


@dataclass(frozen=True)
class Target:
    """The run that is asked for."""

    scenario: Scenario
    is_accuracy: bool
    seconds: float  # minimum duration
    batch: int
    is_official: bool = False
    latency_bound_s: float = 0.1  # Server: bound on the 99th percentile
    queries_per_second: float | None = None  # Server; None: SERVER_LOAD of the estimate
    wait_s: float = 0.0  # Server: how long a query may wait for its batch to fill
    images_in_memory: int = 256  # loaded at a time; a performance run draws from these


def estimate(detector: Detector, images: Sequence[Decoded], target: Target) -> Estimate:
    """Run the model on images for a few seconds. The first call of each kind is a warm-up and is not counted."""
    powers = sorted({*(2**n for n in range(target.batch.bit_length())), target.batch})
    sizes = {"SingleStream": [1], "MultiStream": [QUERY_IMAGES], "Server": powers, "Offline": []}[target.scenario]
    latency = {size: statistics.median(_seconds(partial(detector.detect, _cycle(images, size)))) for size in sizes}
    if target.scenario != "Offline":
        return Estimate(latency, 0.0)
    count = STREAM_BATCHES * target.batch
    return Estimate(latency, count / min(_seconds(partial(_stream, detector, _cycle(images, count), target.batch))))


def server_batch(found: Estimate, bound_s: float) -> int:
    """The largest batch that leaves time for waiting within the latency bound; 1 if none does."""
    fitting = [size for size, seconds in found.latency_s.items() if seconds <= SERVER_BATCH_SHARE * bound_s]
    return max(fitting, default=1)


def settings_for(target: Target, found: Estimate, library: Any) -> dict[str, Any]:
    """Values for fields of LoadGen's TestSettings; `scenario` and `mode` are given by name."""
    scenario = target.scenario
    settings: dict[str, Any] = {
        "scenario": scenario,
        "mode": "AccuracyOnly" if target.is_accuracy else "PerformanceOnly",
        "min_duration_ms": round(1000 * target.seconds),
        "min_query_count": LEAST_QUERIES[scenario],
        **official_seeds(library),
    }
    match scenario:
        case "SingleStream":
            settings["single_stream_target_latency_percentile"] = 0.9
            settings["single_stream_expected_latency_ns"] = round(1e9 * found.latency_s[1] / SPARE_QUERIES)
        case "MultiStream":
            settings["multi_stream_target_latency_percentile"] = 0.99
            settings["multi_stream_samples_per_query"] = QUERY_IMAGES
            settings["multi_stream_expected_latency_ns"] = round(1e9 * found.latency_s[QUERY_IMAGES] / SPARE_QUERIES)
        case "Server":
            size = server_batch(found, target.latency_bound_s)
            settings["server_target_latency_percentile"] = 0.99
            settings["server_target_latency_ns"] = round(1e9 * target.latency_bound_s)
            rate = SERVER_LOAD * size / found.latency_s[size]
            settings["server_target_qps"] = target.queries_per_second or rate
        case "Offline":
            settings["offline_expected_qps"] = SPARE_OFFLINE * found.images_per_second
            if target.is_official:
                settings["min_query_count"] = OFFICIAL_OFFLINE_SAMPLES
        case _:
            unknown_name(scenario, "scenario", Scenario)
    return settings


def expected_seconds(settings: dict[str, Any], found: Estimate) -> float:
    """Approximate duration of a performance run, s."""
    least, queries = settings["min_duration_ms"] / 1000, settings["min_query_count"]
    if settings["scenario"] == "Server":
        return max(least, queries / settings["server_target_qps"])
    if settings["scenario"] == "Offline":
        samples = max(queries, 1.1 * settings["offline_expected_qps"] * least)  # 1.1: LoadGen's own reserve
        return samples / found.images_per_second
    (seconds,) = found.latency_s.values()
    return max(least, queries * seconds)


def apply(settings: dict[str, Any], library: Any) -> Any:
    """LoadGen's TestSettings with these values. Raises AttributeError for a setting that LoadGen lacks."""
    made = library.TestSettings()
    for name, value in settings.items():
        if not hasattr(made, name):
            raise AttributeError(f"this LoadGen has no setting {name!r}")
        if name not in ("scenario", "mode"):
            setattr(made, name, value)
    made.scenario = getattr(library.TestScenario, settings["scenario"])
    made.mode = getattr(library.TestMode, settings["mode"])
    return made


@lru_cache(maxsize=1)
def official_seeds(library: Any) -> dict[str, int]:
    """The seeds of MLPerf's current round, as LoadGen contains them; it gives them out once per process."""
    read = library.TestSettings()
    with scratch_folder() as folder:
        empty = folder / "user.conf"
        empty.write_text("")
        read.FromConfig(str(empty), "atss", "SingleStream", 1)
    return {name: getattr(read, name) for name in ("qsl_rng_seed", "sample_index_rng_seed", "schedule_rng_seed")}


def _seconds(call: Callable[[], object]) -> list[float]:
    """Seconds of repeated calls, after a first call that is not counted."""
    call()
    taken: list[float] = []
    while len(taken) < WARMUP_CALLS or sum(taken) < WARMUP_SECONDS:
        started = time.perf_counter()
        call()
        taken.append(time.perf_counter() - started)
    return taken


def _stream(detector: Detector, images: Sequence[Decoded], batch: int) -> None:
    with closing(detector.stream(images, batch, wait_s=None)) as results:
        for _ in results:
            pass


def _cycle(images: Sequence[Decoded], count: int) -> list[Decoded]:
    return [images[index % len(images)] for index in range(count)]
