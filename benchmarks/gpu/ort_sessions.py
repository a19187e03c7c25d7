"""ONNX Runtime sessions beside those of the backend: of parts of a graph, with other options, with profiles.

    python -m benchmarks.gpu.ort_sessions FILE … --backend cuda --batch 8 --canvas 800 1344 --json profile.json

profiles deployed files: for each operator the provider that ran it, its runs and its milliseconds. On a GPU it is run
with CUDA_LAUNCH_BLOCKING=1, without which an operator's time is that of its launch.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.sides import Side
from runtime.backends.options import BackendOptions
from runtime.backends.ort.session import import_library, load_libraries, providers_for
from runtime.files import atomic_write

Feed = dict[str, np.ndarray]


def open_raw(
    path: Path, backend: str, options: dict[str, str] | None = None, profile: Path | None = None, threads: int = 0
) -> Any:
    """A session with the backend's own providers, whose options `options` replace; with `profile`, a profile's prefix.

    Nothing is checked: what the provider can't run, it leaves to the CPU.
    """
    library = import_library()
    load_libraries(library, backend)
    providers = [
        (name, given | (options or {})) if number == 0 else name
        for number, (name, given) in enumerate(map(_with_options, providers_for(library, path, _options(backend))))
    ]
    settings = library.SessionOptions()
    settings.log_severity_level = 3
    settings.intra_op_num_threads = threads
    settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if profile is not None:
        settings.enable_profiling = True
        settings.profile_file_prefix = str(profile)
    return library.InferenceSession(str(path), settings, providers=providers)


def bound_side(session: Any, feed: Feed, device: str, count: str | None = None, fixed_by: Any = None) -> Side:
    """A run with all inputs and outputs in the memory of `device` ("cuda" or "cpu"), bound once.

    It returns the sum of the output `count`, 0 without it. The outputs lie in new memory in each run; with another
    session of the file, `fixed_by`, in the memory that a run of it left, as a CUDA graph needs.
    """
    library = import_library()
    binding = bind_inputs(session, feed, device)
    names = [output.name for output in session.get_outputs()]
    fixed: list[Any] = [None] * len(names)
    if fixed_by is not None:
        other = bind_inputs(fixed_by, feed, device)
        for name in names:
            other.bind_output(name, device, 0)
        fixed_by.run_with_iobinding(other)
        other.synchronize_outputs()
        fixed = [library.OrtValue.ortvalue_from_numpy(one.numpy(), device, 0) for one in other.get_outputs()]
    for name, value in zip(names, fixed, strict=True):
        if value is None:
            binding.bind_output(name, device, 0)
        else:
            binding.bind_ortvalue_output(name, value)
    binding.synchronize_inputs()

    def run() -> int:
        session.run_with_iobinding(binding)
        binding.synchronize_outputs()
        return 0 if count is None else int(binding.get_outputs()[names.index(count)].numpy().sum())

    return run


def bind_inputs(session: Any, feed: Feed, device: str) -> Any:
    """A binding of a session whose inputs are copied into the memory of `device`."""
    library = import_library()
    binding = session.io_binding()
    for name, array in feed.items():
        # The binding keeps the value alive.
        binding.bind_ortvalue_input(name, library.OrtValue.ortvalue_from_numpy(array, device, 0))
    return binding


def canvases(batch: int, height: int, width: int) -> Feed:
    """Random canvases as the deployed graph takes them."""
    images = np.random.default_rng(0).integers(0, 256, (batch, height, width, 3), dtype=np.uint8)
    return {"images": images, "image_sizes": np.full((batch, 2), (height, width), np.int32)}


def operators(profile: Path) -> list[dict[str, Any]]:
    """The operators of a profile by the time that they took: kind, provider, number of nodes, milliseconds of a run.

    Of a node with several runs the first warms up and doesn't count.
    """
    taken: dict[tuple[str, str, str], list[float]] = {}
    for event in json.loads(profile.read_text(encoding="utf-8")):
        given = event.get("args", {})
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            key = given.get("op_name", "?"), given.get("provider", "?").removesuffix("ExecutionProvider"), event["name"]
            taken.setdefault(key, []).append(event["dur"] / 1000)
    found: dict[tuple[str, str], list[float]] = {}
    for (kind, provider, _), values in taken.items():
        counted = values[1:] or values
        found.setdefault((kind, provider), []).append(sum(counted) / len(counted))
    rows = [
        {"operator": kind, "provider": provider, "nodes": len(values), "ms": sum(values)}
        for (kind, provider), values in found.items()
    ]
    return sorted(rows, key=lambda row: -row["ms"])


def profiled(path: Path, backend: str, feed: Feed, runs: int = 4) -> list[dict[str, Any]]:
    """The operators of a few runs of a file, as `operators` gives them."""
    with tempfile.TemporaryDirectory() as folder:
        session = open_raw(path, backend, profile=Path(folder, "profile"))
        names = {given.name for given in session.get_inputs()}
        for _ in range(runs):
            session.run(None, {name: array for name, array in feed.items() if name in names})
        return operators(Path(session.end_profiling()))


def _options(backend: str) -> BackendOptions:
    return BackendOptions(backend=backend)


def _with_options(provider: Any) -> tuple[str, dict[str, str]]:
    return (provider, {}) if isinstance(provider, str) else provider


def main(arguments: Sequence[str] | None = None) -> None:
    """Profile files and write the operators of each, or what its session raised, as JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--backend", default="cuda")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--canvas", type=int, nargs=2, required=True, metavar=("H", "W"))
    parser.add_argument("--json", type=Path, required=True)
    options = parser.parse_args(arguments)
    os.environ.setdefault("CUDA_LAUNCH_BLOCKING", "1")  # read when CUDA starts
    found: dict[str, Any] = {}
    for path in options.files:
        try:
            found[path.name] = profiled(path, options.backend, canvases(options.batch, *options.canvas))
        except Exception as error:  # the library's errors share no narrower base
            found[path.name] = f"{type(error).__name__}: {error}"
        atomic_write(options.json, json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
