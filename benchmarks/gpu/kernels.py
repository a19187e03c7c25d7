"""What a GPU is given to do by a function: the kernels that it launches, and which operators they belong to."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from benchmarks.alternation import synchronize

NAME = 100  # characters of a kernel's name; templates' are longer


class Work(NamedTuple):
    """How often something ran in a call, and how long it took."""

    launches: float
    microseconds: float


class Profile(NamedTuple):
    """The work of a call by kernel (empty without a GPU) and by operator, whose own kernels count, or on a CPU time."""

    kernels: dict[str, Work]
    operators: dict[str, Work]

    @property
    def launches(self) -> float:
        """The number of kernels of a call; copies and fills by the driver are no kernels."""
        return sum(work.launches for name, work in self.kernels.items() if not name.startswith(("Memcpy", "Memset")))

    @property
    def copies(self) -> float:
        """The number of the driver's copies and fills in a call."""
        return sum(work.launches for work in self.kernels.values()) - self.launches

    @property
    def microseconds(self) -> float:
        """How long the GPU works on a call, pauses between kernels left out."""
        return sum(work.microseconds for work in self.kernels.values())


def profile_of(function: Callable[[], Any], device: torch.device, calls: int = 3) -> Profile:
    """The work of one call, a mean over `calls`, after a call that warms up."""
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device.type == "cuda" else [])
    function()
    synchronize(device)
    with profile(activities=activities) as found:
        for _ in range(calls):
            function()
        synchronize(device)
    launched = [
        (event.name[:NAME], Work(1 / calls, event.time_range.elapsed_us() / calls))
        for event in found.events()
        # An annotated range has a shadow on the GPU's track, which is no work of its own.
        if event.device_type == DeviceType.CUDA and not getattr(event, "is_user_annotation", False)
    ]
    operators = [
        (row.key, Work(row.count / calls, (row.self_device_time_total or row.self_cpu_time_total) / calls))
        for row in found.key_averages()
        if row.device_type == DeviceType.CPU and (row.self_device_time_total > 0 or device.type == "cpu")
    ]
    return Profile(sums(launched), sums(operators))


def sums(items: Iterable[tuple[str, Work]]) -> dict[str, Work]:
    """The work of equal names together."""
    found: dict[str, Work] = {}
    for name, work in items:
        before = found.get(name, Work(0, 0))
        found[name] = Work(before.launches + work.launches, before.microseconds + work.microseconds)
    return found


def largest(works: Mapping[str, Work], count: int) -> dict[str, Work]:
    """The `count` that take longest, longest first, then all others as one."""
    order = sorted(works.items(), key=lambda item: -item[1].microseconds)
    rest = sums(("all others", work) for _, work in order[count:])
    return dict(order[:count]) | rest
