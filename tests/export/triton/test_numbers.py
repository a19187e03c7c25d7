"""Numbers that Triton doesn't take are refused before anything is written."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from export.triton.config import ServingOptions
from export.triton.repository import write_repository
from runtime.errors import UserError

from ..conftest import Exported


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (ServingOptions(instances=0), "expected at least one instance"),
        (ServingOptions(batch_max=0), "batches of at least 1"),
        (ServingOptions(queue_delay_us=-1), "a queue delay of 0 or more"),
        (ServingOptions(queue_delay_us=10**30), "of at most 2147483647"),
        (ServingOptions(front_instances=9999999999), "of at most 2147483647"),
    ],
)
def test_numbers_that_triton_does_not_take(
    options: ServingOptions, message: str, exported: Exported, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        write_repository(exported.model, tmp_path / "a", options=options)
    assert os.listdir(tmp_path) == []
