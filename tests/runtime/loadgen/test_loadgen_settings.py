"""LoadGen's settings as we give them, and its logs as we read them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtime.loadgen.logs import ACCURACY, SUMMARY, LoadgenError, read_responses, read_summary
from runtime.loadgen.settings import (
    SCENARIOS,
    Estimate,
    Scenario,
    Target,
    apply,
    expected_seconds,
    server_batch,
    settings_for,
)
from runtime.loadgen.sut import encode

from .test_loadgen_sut import FOUND

FAST = Estimate({1: 0.001, 2: 0.002, 4: 0.003, 8: 0.004}, 2000.0)


@pytest.fixture
def library() -> Any:
    return pytest.importorskip("mlperf_loadgen", reason="extra `loadgen`")


# Settings.


@pytest.mark.parametrize("scenario", SCENARIOS)
@pytest.mark.parametrize("is_accuracy", [False, True])
def test_settings_are_loadgens(library: Any, scenario: Scenario, is_accuracy: bool) -> None:
    settings = settings_for(Target(scenario, is_accuracy, seconds=60, batch=8), FAST, library)
    made = apply(settings, library)
    assert made.scenario == getattr(library.TestScenario, scenario)
    assert made.mode == (library.TestMode.AccuracyOnly if is_accuracy else library.TestMode.PerformanceOnly)
    assert made.min_duration_ms == 60000
    assert settings["qsl_rng_seed"] == made.qsl_rng_seed > 0
    assert json.loads(json.dumps(settings)) == settings


def test_settings_of_each_scenario(library: Any) -> None:
    def of(scenario: Scenario, **more: Any) -> dict[str, Any]:
        return settings_for(Target(scenario, False, seconds=1, batch=8, **more), FAST, library)

    assert of("SingleStream")["single_stream_expected_latency_ns"] == 500_000
    assert of("MultiStream")["multi_stream_samples_per_query"] == 8
    assert of("MultiStream")["min_query_count"] == 662
    assert of("Offline")["offline_expected_qps"] == 3000
    assert of("Offline", is_official=True)["min_query_count"] == 24576
    assert of("Server", latency_bound_s=0.006)["server_target_qps"] == pytest.approx(0.4 * 4 / 0.003)
    assert of("Server", queries_per_second=7.0)["server_target_qps"] == 7
    assert of("Server")["server_target_latency_ns"] == 100_000_000


def test_a_setting_that_this_loadgen_lacks(library: Any) -> None:
    with pytest.raises(AttributeError, match="no setting 'server_tea'"):
        apply({"scenario": "Server", "mode": "PerformanceOnly", "server_tea": 1}, library)


def test_a_batch_leaves_time_for_waiting() -> None:
    assert [server_batch(FAST, bound) for bound in (0.1, 0.008, 0.0079, 0.002, 0.001)] == [8, 8, 4, 1, 1]


def test_how_long_a_run_takes(library: Any) -> None:
    def seconds(scenario: Scenario, found: Estimate, **more: Any) -> float:
        target = Target(scenario, False, seconds=2, batch=8, **more)
        return expected_seconds(settings_for(target, found, library), found)

    assert seconds("SingleStream", Estimate({1: 0.001}, 0)) == 2
    assert seconds("SingleStream", Estimate({1: 1.0}, 0)) == 64
    assert seconds("MultiStream", Estimate({8: 0.01}, 0)) == pytest.approx(6.62)
    assert seconds("Server", FAST, queries_per_second=10.0) == pytest.approx(115.7)
    assert seconds("Offline", Estimate({}, 10.0)) == pytest.approx(2 * 1.1 * 1.5)
    assert seconds("Offline", Estimate({}, 10.0), is_official=True) == pytest.approx(2457.6)


# Logs.

SUMMARY_TEXT = """================================================
MLPerf Results Summary
================================================
SUT name : PySUT
Scenario : Server
Mode     : PerformanceOnly
Completed samples per second    : 48.54
Result is : INVALID
  Min duration satisfied : Yes
  Early stopping satisfied: NO
Recommendations:
 * Reduce target QPS to improve latency.
Early Stopping Result:
 * Run unsuccessful.
 * Processed 64 queries.
 * Would need to run at least 395 more queries,
 with the run being successful if every additional
 query were under latency.

================================================
Additional Stats
================================================
99.00 percentile latency (ns)   : 18446657

No warnings encountered during test.

1 ERROR encountered. See detailed log.
"""


def test_a_summary(tmp_path: Path) -> None:
    (tmp_path / SUMMARY).write_text(SUMMARY_TEXT)
    found = read_summary(tmp_path)
    assert not found.is_valid
    assert found.values["Early stopping satisfied"] == "NO"
    assert found.number("99.00 percentile latency") == 18446657
    assert found.number("nothing") is None
    assert found.advice == (
        "Reduce target QPS to improve latency.",
        "Run unsuccessful.",
        "Processed 64 queries.",
        "Would need to run at least 395 more queries, with the run being successful if every additional query were "
        "under latency.",
    )
    assert found.errors == ("1 ERROR encountered. See detailed log.",)
    (tmp_path / SUMMARY).write_text(SUMMARY_TEXT.replace("INVALID", "VALID").replace("1 ERROR", "No errors"))
    assert read_summary(tmp_path).is_valid
    assert read_summary(tmp_path).errors == ()


@pytest.mark.parametrize("text", ["", SUMMARY_TEXT[:200]])
def test_a_summary_without_a_verdict(tmp_path: Path, text: str) -> None:
    (tmp_path / SUMMARY).write_text(text)
    with pytest.raises(LoadgenError, match="no verdict there: the run was cut short, or the disk is full"):
        read_summary(tmp_path)


def write_log(folder: Path, *entries: tuple[int, bytes]) -> None:
    rows = [{"seq_id": n, "qsl_idx": index, "data": data.hex().upper()} for n, (index, data) in enumerate(entries)]
    (folder / ACCURACY).write_text(json.dumps(rows))


def test_a_log_of_responses(tmp_path: Path) -> None:
    write_log(tmp_path, (1, b""), (0, encode(FOUND).tobytes()), (1, encode(FOUND).tobytes()))
    first, second = read_responses(tmp_path, 2)
    np.testing.assert_array_equal(first.boxes, FOUND.boxes)
    assert len(second) == 0  # asked for twice: the first response counts


def test_logs_of_responses_that_are_not_whole(tmp_path: Path) -> None:
    with pytest.raises(LoadgenError, match="cannot read LoadGen's log: No such file"):
        read_responses(tmp_path, 2)
    write_log(tmp_path, (0, b""))
    with pytest.raises(LoadgenError, match=r"responses for 1 images, expected 2, \[1\]"):
        read_responses(tmp_path, 2)
    for text in ("", "[\n{ ", "[]x", '[{"qsl_idx": 0}]', '[{"qsl_idx": 0, "data": "00"}]', "[1]"):
        (tmp_path / ACCURACY).write_text(text)
        with pytest.raises(LoadgenError, match="not a whole accuracy run's log"):
            read_responses(tmp_path, 1)
