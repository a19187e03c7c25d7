"""The tables beside the charts have the charts' numbers."""

from __future__ import annotations

import numpy as np

from runtime.report.content import PrecisionCurves, Reliability, ScoreCurve
from runtime.report.numbers import precision_rows, reliability_rows, threshold_rows


def test_no_model_and_nothing_found_are_dashes() -> None:
    assert precision_rows([], 0.5)[0] == ["0.0"]
    assert precision_rows([None], 0.5)[-1] == ["1.0", "–"]
    none = ScoreCurve([0.0, 1.0], [0.5, -1.0], [1.0, 0.0], [0.6, 0.0], 0.1, 0.6)
    assert threshold_rows(none)[-1] == ["1.00", "0.000", "–", "0.000"]
    assert reliability_rows(Reliability([0.0, 1.0], [0], [0], [-1.0], [-1.0], 0.0)) == [["0.00–1.00", "0", "0", "–"]]


def test_precision_is_the_mean_of_the_measured_classes_at_the_nearest_recall() -> None:
    precision = np.full((2, 101, 3), -1.0)
    precision[0, :, 0], precision[0, :, 1] = np.linspace(1, 0, 101), np.linspace(0.5, 0, 101)
    precision[1, :, :2] = 0.25
    curves = PrecisionCurves((0.5, 0.75), precision)
    rows = precision_rows([curves, None], 0.5)
    assert [row[0] for row in rows] == [f"{n / 10:.1f}" for n in range(11)]
    assert rows[0] == ["0.0", "0.750", "–"]
    assert rows[4] == ["0.4", "0.450", "–"]
    assert {row[1] for row in precision_rows([curves], 0.75)} == {"0.250"}


def test_thresholds_and_bins_are_those_of_the_curve() -> None:
    scores = np.linspace(0, 1, 101)
    curve = ScoreCurve(scores[::-1], scores[::-1] / 2, 1 - scores[::-1], scores[::-1] ** 2, 0.3, 0.2)
    assert threshold_rows(curve)[3] == ["0.30", "0.090", "0.150", "0.700"]
    found = Reliability([0.0, 0.5, 1.0], [1200, 3], [800, 1], [0.3, 0.8], [0.6, 0.75], 0.1)
    assert reliability_rows(found) == [["0.00–0.50", "1,200", "800", "0.600"], ["0.50–1.00", "3", "1", "0.750"]]
