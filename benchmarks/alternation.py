"""Times functions that take turns on a CPU or a GPU, so that a slow moment of the machine hits all of them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

Mark = float | torch.cuda.Event


def synchronize(device: torch.device) -> None:
    """Wait until the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def mark(device: torch.device) -> Mark:
    """This moment of the device's work; a GPU reaches it later than the host, which doesn't wait."""
    if device.type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def seconds_between(first: Mark, last: Mark) -> float:
    """Seconds from one mark to another, both of the same device and reached."""
    if isinstance(first, torch.cuda.Event):
        return first.elapsed_time(last) / 1e3
    assert isinstance(last, float)
    return last - first


def take_turns(
    functions: Mapping[str, Callable[[], Any]],
    device: torch.device,
    rounds: int,
    calls: int = 1,
    limit_s: float = math.inf,
) -> dict[str, list[float]]:
    """Seconds of one call of each function, by round; A B C A B C …, after a call of each that warms up.

    A turn is `calls` calls, which the device ends before the clock is read. After `limit_s` seconds no round is begun,
    but each function has one figure at least.
    """
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for function in functions.values():
        function()
    synchronize(device)
    begun = time.perf_counter()
    for number in range(rounds):
        if number and time.perf_counter() - begun > limit_s:
            break
        for name, function in functions.items():
            synchronize(device)
            started = time.perf_counter()
            for _ in range(calls):
                function()
            synchronize(device)
            seconds[name].append((time.perf_counter() - started) / calls)
    return seconds
