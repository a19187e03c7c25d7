"""Which of two backends runs a file faster on this machine: a short measurement, remembered for the user.

Neither ONNX Runtime nor OpenVINO is the faster one everywhere: it depends on the network and on the processor. Both
compute in float32 with sums in another order, so scores differ in the sixth digit, and a detection at the threshold may
appear with one of them alone. Who needs the same numbers on every machine names the backend.

Remembered is one small file per model, machine and library versions in the user's folder for caches, or in the folder
that `ATSS_TOOLKIT_CACHE` names. It holds a choice between two names and nothing that is executed. A file that can't be
read or doesn't fit is ignored, and one that can't be written is left out: then each start measures again.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Annotated

import numpy as np

from ..bounds import Bounds, Count, Name, Positive, Sha256
from ..errors import UserError
from ..files import WriteError, atomic_write, sha256_file
from ..home import home_folder
from ..json_file import read_json_file
from ..machine.processor import processors, read_processor
from ..manifest import Manifest
from ..records import record_from_dict
from .contract import Backend, BackendError

BUDGET_S = 1.0  # measuring ends with the round, or with the first call of both, in which this much time has passed
MOST_ROUNDS = 15
CANVAS_HW = (256, 320)  # px, of a file that takes many: large enough for the network's share, and soon measured
MARGIN = 1.05  # the second backend must be this much faster: less is noise, and a choice that flips helps nobody
FEWEST_ROUNDS = 3  # of a verdict that is remembered: an interruption may have spoiled fewer
CLEAR = 1.2  # a ratio that is remembered all the same
_LIBRARIES = {"cpu": ("onnxruntime", "onnxruntime-gpu"), "openvino": ("openvino",)}  # distributions, by backend


@dataclasses.dataclass(frozen=True)
class Machine:
    """What the measurement of a file depends on."""

    file_sha256: Sha256
    libraries: dict[Name, Name]  # distribution → version
    processor: Name  # its name and abilities
    processors: Positive  # that this process may use
    threads: Count  # as asked for; 0: the libraries decide


@dataclasses.dataclass(frozen=True)
class Verdict:
    """Milliseconds of a batch in both backends, each the least of some calls, as measured on `machine`."""

    machine: Machine | None  # None: unknown, so that nothing is remembered
    milliseconds: dict[Name, Annotated[float, Bounds(0, 1e9, above=True)]]  # by backend, the preferred one first
    rounds: Count  # calls of each backend that were timed; 0: the first call, which warms up, took too long for more

    @property
    def chosen(self) -> str:
        """The second backend where it is faster by MARGIN, else the first."""
        first, second = self.milliseconds
        return second if self.milliseconds[first] >= MARGIN * self.milliseconds[second] else first

    @property
    def is_lasting(self) -> bool:
        """Whether another measurement would hardly say otherwise: enough rounds, or a clear ratio."""
        slower, faster = max(self.milliseconds.values()), min(self.milliseconds.values())
        return self.rounds >= FEWEST_ROUNDS or slower >= CLEAR * faster

    def __str__(self) -> str:
        other = next(name for name in self.milliseconds if name != self.chosen)
        ratio = self.milliseconds[other] / self.milliseconds[self.chosen]
        if ratio < MARGIN:
            return f"as fast as {other} here, measured"
        return f"faster than {other} by {ratio:.2f} x here, measured"


def describe_machine(path: Path, threads: int) -> Machine | None:
    """This machine and the file; None where a backend's library isn't an installed package, or the file is gone.

    ONNX Runtime is known by the distributions onnxruntime and onnxruntime-gpu alone. With another one, such as
    onnxruntime-directml or onnxruntime-openvino, nothing is remembered, and each start measures again.
    """
    libraries: dict[str, str] = {}
    for names in _LIBRARIES.values():
        found = {}
        for name in names:
            with suppress(metadata.PackageNotFoundError):
                found[name] = metadata.version(name)
        if not found:
            return None
        libraries |= found
    try:
        digest = sha256_file(path)
    except OSError:
        return None
    return Machine(digest, libraries, str(read_processor()), processors(), threads)


def compare_speed(
    backends: Mapping[str, Backend], machine: Machine | None, clock: Callable[[], float] = time.perf_counter
) -> tuple[Verdict | None, dict[str, BackendError]]:
    """The speed of two backends of one file in alternating calls, and the errors of those that fail.

    Each is called once before, and only once where these calls alone exceed the budget: then they decide. The least
    times count, because what else the machine does only adds to them. There is no verdict where one of the two fails or
    returns a number that isn't finite.
    """
    images, image_sizes = _example(next(iter(backends.values())).manifest)
    failed: dict[str, BackendError] = {}
    seconds: dict[str, list[float]] = {name: [] for name in backends}
    rounds, measured = -1, 0.0  # the first calls warm up
    while rounds < MOST_ROUNDS and measured < BUDGET_S:
        if rounds == 0:
            seconds, measured = {name: [] for name in backends}, 0.0
        for name, backend in backends.items():
            before = clock()
            if error := _trial(backend, images, image_sizes):
                failed[name] = error
            seconds[name].append(clock() - before)
            measured += seconds[name][-1]
        if failed:
            return None, failed
        rounds += 1
    return Verdict(machine, {name: 1000 * min(values) for name, values in seconds.items()}, rounds), {}


def _trial(backend: Backend, images: np.ndarray, image_sizes: np.ndarray) -> BackendError | None:
    """Run a batch; the error where that fails or a detection isn't finite."""
    try:
        found = backend.infer(images, image_sizes)
    except BackendError as error:
        return error
    finite = np.isfinite(found.detection_boxes).all() and np.isfinite(found.detection_scores).all()
    return None if finite else BackendError("its detections are not finite numbers")


def recall(machine: Machine, names: tuple[str, str]) -> Verdict | None:
    """The verdict on these backends that was remembered for this machine; None where there is none to trust."""
    try:
        verdict = record_from_dict(Verdict, read_json_file(_place(machine), "verdict"), "what was measured")
    except (RuntimeError, UserError):  # a RuntimeError: the user has no home
        return None
    return verdict if verdict.machine == machine and tuple(verdict.milliseconds) == names else None


def remember(verdict: Verdict) -> None:
    """Write the verdict for later starts; does nothing where it isn't lasting or can't be written."""
    if verdict.machine is not None and verdict.is_lasting:
        with suppress(WriteError, OSError, RuntimeError):
            atomic_write(_place(verdict.machine), json.dumps(dataclasses.asdict(verdict), indent=2) + "\n")


def cache_folder() -> Path:
    """The folder of what is remembered: `ATSS_TOOLKIT_CACHE`, or `fastest` in the toolkit's own (`home_folder`).

    Raises RuntimeError where the user has no home.
    """
    own = os.environ.get("ATSS_TOOLKIT_CACHE")
    return Path(own) if own else home_folder() / "fastest"


def _place(machine: Machine) -> Path:
    text = json.dumps(dataclasses.asdict(machine), sort_keys=True)
    return cache_folder() / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.json"


def _example(manifest: Manifest) -> tuple[np.ndarray, np.ndarray]:
    """A batch of one (or the least that the file takes) with noise for pixels."""
    divisor, shapes = manifest.preprocess.size_divisor, manifest.inputs
    height, width = shapes.nearest_canvas(
        (-(-CANVAS_HW[0] // divisor) * divisor, -(-CANVAS_HW[1] // divisor) * divisor)
    )
    batch = shapes.nearest_batch(1)
    images = np.random.default_rng(0).integers(0, 256, (batch, height, width, 3), dtype=np.uint8)
    return images, np.full((batch, 2), (height, width), np.int32)
