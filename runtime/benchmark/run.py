"""A benchmark from deployed models to a report."""

from __future__ import annotations

import logging
import sys
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict

from tqdm import tqdm

from ..backends import BackendError
from ..backends.options import BackendOptions
from ..cuda import pci_bus_id
from ..detector import Detector
from ..machine.conditions import (
    describe_machine,
    describe_run,
    memory_mb,
    peak_memory_mb,
    reset_peak_memory,
)
from ..machine.gpu_watch import GpuWatch
from ..machine.gpus import kernel_driver
from ..model_spec import ModelSpec, open_model_with_sha256
from .images import ImageFiles
from .model_info import ModelInfo, describe_model
from .report import Figures, Memory, Pair, Report, Settings, figures, pairs
from .rounds import measure
from .stages import plan_work

_log = logging.getLogger(__name__)


def run_benchmark(
    models: Sequence[ModelSpec],
    image_files: ImageFiles,
    settings: Settings,
    backend: BackendOptions | None = None,
    command: str = "",
    show_progress: bool | None = None,
) -> Report:
    """Measure deployed models on images and report the figures with the conditions that they were measured under.

    With `settings.alternating` all models are open at once and their rounds alternate, which gives ratios. Otherwise
    one model after the other is alone in the process, so that each one's memory is known. `backend` runs the models
    that name none of their own (None: as `open_backend` chooses). `command` is recorded in the report. Progress is
    shown on a terminal unless `show_progress` says otherwise. Before anything is measured, every model is opened once
    and checked against the images and batches. Raises BackendError, ManifestError, EngineError, UserError.
    """
    backend = backend or BackendOptions()
    machine, run = describe_machine(), describe_run(command)  # first: the machine's load before the benchmark's own
    named = dict(zip(_names(models), models, strict=True))
    infos = {name: _checked(model, backend, image_files, settings.batches) for name, model in named.items()}
    groups = [list(named)] if settings.alternating else [[name] for name in named]
    found, memory, ratios = list[Figures](), list[Memory](), list[Pair]()
    rounds = 2 * (settings.rounds + settings.warmup_rounds) * len(settings.batches) * len(named)
    is_shown = sys.stderr.isatty() if show_progress is None else show_progress
    with (
        GpuWatch(backend.device, pci_bus_id) as gpu,
        tqdm(total=rounds, desc="rounds", unit="round", disable=not is_shown, leave=False) as bar,
    ):
        for names in groups:
            reset_peak_memory()
            before = memory_mb()
            with ExitStack() as stack:
                detectors = {name: stack.enter_context(_reopened(named[name], backend, infos[name])) for name in names}
                for batch in settings.batches:
                    measured = measure(
                        detectors,
                        image_files,
                        batch,
                        settings.rounds,
                        settings.warmup_rounds,
                        on_round=lambda: bar.update(1),
                    )
                    found += [figures(each, len(image_files.sizes_hw)) for each in measured]
                    ratios += pairs(measured)
                memory.append(Memory.measured(tuple(names), before, peak_memory_mb()))
    if gpu.problem is not None and kernel_driver() is not None:
        _log.warning("warning: the GPU was not watched: %s", gpu.problem)
    return Report(
        run=run,
        machine=machine,
        artifacts=tuple(infos.values()),
        images=image_files.summary(),
        settings=settings,
        figures=tuple(found),
        memory=tuple(memory),
        pairs=tuple(ratios),
        gpu=gpu.report(),
    )


def _checked(model: ModelSpec, backend: BackendOptions, image_files: ImageFiles, batches: Sequence[int]) -> ModelInfo:
    """Open and close a model, so that one that doesn't fit the images or batches is known before anything runs."""
    detector, sha256 = open_model_with_sha256(model, **asdict(backend))
    with detector:
        for batch in batches:
            plan_work(detector, image_files.sizes_hw, batch)
        return describe_model(model.path, sha256, detector)


def _reopened(model: ModelSpec, backend: BackendOptions, info: ModelInfo) -> Detector:
    """The model again. Raises BackendError where its file is not the one that `info` describes."""
    detector, sha256 = open_model_with_sha256(model, **asdict(backend))
    if sha256 != info.sha256:
        detector.close()
        raise BackendError(f"{model.path}: the file was replaced during the benchmark; run again")
    return detector


def _names(models: Sequence[ModelSpec]) -> list[str]:
    """A name for each model. The second of two equal models, which shows how far equal ones differ, gets a number."""
    counts = Counter[ModelSpec]()
    names = []
    for model in models:
        counts[model] += 1
        names.append(f"{model} #{counts[model]}" if counts[model] > 1 else str(model))
    return names
