from __future__ import annotations

import numpy as np
import pytest

from runtime.benchmark.measuring import Distribution, distribution, speed_ratios


def test_no_value() -> None:
    with pytest.raises(ValueError, match="no value"):
        distribution([])


def test_quantiles_of_known_values() -> None:
    found = distribution([float(value) for value in range(101)])
    assert found == Distribution(count=101, mean=50, least=0, p25=25, p50=50, p75=75, p90=90, p99=99, most=100)


def test_quantiles_are_numpys_whatever_the_order() -> None:
    values = np.random.default_rng(0).gamma(2, 3, 37)
    found = distribution(values.tolist())
    assert found.p90 == distribution(sorted(values.tolist())).p90
    for name, share in (("p25", 25), ("p50", 50), ("p75", 75), ("p90", 90), ("p99", 99)):
        assert getattr(found, name) == pytest.approx(np.percentile(values, share))


def test_spread() -> None:
    assert distribution([9, 10, 11]).spread == pytest.approx(0.2)
    assert distribution([10]).spread == 0
    assert distribution([0, 0]).spread == 0


def test_what_slows_both_of_a_pair_drops_out_of_the_ratio() -> None:
    machine = np.array([1, 5, 1, 20, 1.5])  # how slow it is at each pair
    assert speed_ratios((2 * machine).tolist(), machine.tolist()) == distribution([2] * 5)


def test_runs_that_did_not_alternate() -> None:
    with pytest.raises(ValueError, match="2 runs against 1"):
        speed_ratios([1, 2], [1])
