"""Runs MLPerf's LoadGen on a detector, with a system under test for each of the four scenarios."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from ..batching import cut
from ..detector import Detector
from ..errors import UserError
from ..names import unknown_name
from .logs import FAILED, SUMMARY, LoadgenError, remove_logs
from .settings import Estimate, Scenario, Target, apply, server_batch
from .sut import Answer, BatchingSystem, Query, Responses, Samples, SystemUnderTest


def import_loadgen() -> Any:
    """LoadGen's module. Raises LoadgenError if it is not installed."""
    try:
        import mlperf_loadgen
    except ImportError as error:
        raise LoadgenError(
            f"LoadGen cannot be imported ({error}); install it: pip install 'atss-toolkit[loadgen]'"
        ) from error
    return mlperf_loadgen


def run_loadgen(
    detector: Detector, paths: Sequence[Path], target: Target, settings: dict[str, Any], found: Estimate, folder: Path
) -> None:
    """Run LoadGen once on the images; its logs go to `folder`, which must exist.

    Raises the first error of a query. LoadGen counts failures as answers, so its summary is then renamed to FAILED.
    """
    library = import_loadgen()
    samples, responses = Samples(paths, detector.load_preprocess), Responses(library)
    logs = library.LogSettings()
    logs.log_output.outdir = str(folder)
    logs.log_output.copy_summary_to_stdout = False
    logs.enable_trace = False
    remove_logs(folder)
    with open_system(detector, samples, responses, target, found) as system:
        tested = library.ConstructSUT(system.issue, system.flush)
        load = _guarded(samples.load, responses)
        in_memory = min(len(samples), target.images_in_memory)
        held = library.ConstructQSL(len(samples), in_memory, load, samples.unload)
        try:
            with _interruptible():
                no_audit = str(folder / "audit.config")  # LoadGen would read one from the current folder
                library.StartTestWithLogSettings(tested, held, apply(settings, library), logs, no_audit)
        finally:
            library.DestroyQSL(held)
            library.DestroySUT(tested)
    if responses.failure is not None:
        if (folder / SUMMARY).exists():
            (folder / SUMMARY).rename(folder / FAILED)
        raise responses.failure


@contextmanager
def open_system(
    detector: Detector, samples: Samples, responses: Responses, target: Target, found: Estimate
) -> Iterator[SystemUnderTest | BatchingSystem]:
    """The system under test for the target's scenario."""
    match target.scenario:
        case "Offline":
            yield SystemUnderTest(answer_stream(detector, samples, target.batch), responses)
        case "Server":
            size = server_batch(found, target.latency_bound_s)
            with BatchingSystem(
                answer_query(detector, samples, size),
                responses,
                key=lambda query: query_canvas_hw(detector, samples, query),
                batch=size,
                wait_s=target.wait_s,
                workers=max(1, detector.concurrency),
            ) as system:
                yield system
        case "SingleStream" | "MultiStream":
            yield SystemUnderTest(answer_query(detector, samples, target.batch), responses)
        case _:
            unknown_name(target.scenario, "scenario", Scenario)


def answer_query(detector: Detector, samples: Samples, batch: int) -> Answer:
    """An Answer that detects on a whole query, in batches of at most `batch` images."""

    def answer(queries: Sequence[Query], responses: Responses) -> None:
        for some in cut(queries, batch):
            responses.complete(some, detector.detect([samples[query.index] for query in some]))

    return answer


def answer_stream(detector: Detector, samples: Samples, batch: int) -> Answer:
    """An Answer that sends a query of many images through the pipeline, sorted by canvas."""

    def answer(queries: Sequence[Query], responses: Responses) -> None:
        ordered = sorted(queries, key=lambda query: query_canvas_hw(detector, samples, query))
        images = (samples[query.index] for query in ordered)
        with closing(detector.stream(images, batch, wait_s=None)) as results:
            for query, result in zip(ordered, results, strict=True):
                if isinstance(result, UserError):
                    raise result
                responses.complete([query], [result])

    return answer


def query_canvas_hw(detector: Detector, samples: Samples, query: Query) -> tuple[int, int]:
    """Height and width of the canvas of a query's image."""
    return detector.canvas_hw(samples[query.index].size_hw)


def _guarded(call: Callable[[Sequence[int]], None], responses: Responses) -> Callable[[Sequence[int]], None]:
    def guarded(indices: Sequence[int]) -> None:
        try:
            call(indices)
        except BaseException as error:  # LoadGen aborts the process if anything is raised into it
            responses.fail([], error)

    return guarded


@contextmanager
def _interruptible() -> Iterator[None]:
    """Let signals end the process at once: Python would see them when LoadGen calls back, in Server after minutes."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in before:
        signal.signal(number, signal.SIG_DFL)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
