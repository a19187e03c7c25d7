"""The operations that assignment and losses dispatch are counted, and don't creep up."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import torch

from benchmarks.gpu.criteria import ATSS
from benchmarks.operations import counts, operations


def test_each_operation_is_counted() -> None:
    one = torch.ones(2, 3)
    assert operations(lambda: None) == Counter()
    assert operations(lambda: one.sin().sin() + one) == {"aten.sin.default": 2, "aten.add.Tensor": 1}


def test_a_step_of_atss_launches_little_outside_the_network() -> None:
    """On a GPU each operation costs the host some microseconds, as much as its kernel's work or more."""
    found = counts(ATSS)
    assert found["assignment"] <= 140
    assert found["losses"] <= 165
    assert found["gradients"] <= 195


def test_further_levels_cost_the_assignment_nothing() -> None:
    """All levels of a large canvas are searched at once."""
    fewer = replace(ATSS, pyramid=replace(ATSS.pyramid, levels=3))
    assert counts(fewer)["assignment"] == counts(ATSS)["assignment"]
