"""A benchmark's report as text: first the conditions, then the figures; and caveats about the figures."""

from __future__ import annotations

from collections.abc import Iterable

from ..machine.conditions import Machine
from ..machine.gpu_watch import GpuReport
from ..stopwatch import STAGES
from ..terminal import printable
from .images import ImageSet
from .measuring import Distribution
from .model_info import ModelInfo
from .report import Figures, Memory, Pair, Report

NOISY = 0.1  # spread over rounds above which a figure counts as noisy
FEW = 100  # with fewer batches the 99th percentile is about the slowest batch


def report_as_text(report: Report) -> str:
    """The conditions and all figures, for a terminal."""
    blocks = [_conditions(report)]
    for artifact in report.artifacts:
        blocks.append(_artifact(artifact))
    blocks += [_figures(figures) for figures in report.figures]
    blocks.append("\n".join(_memory(memory) for memory in report.memory))
    if report.gpu is not None:
        blocks.append(_gpu(report.gpu))
    if len(report.figures) > 1:
        blocks.append(_side_by_side(report))
    if report.pairs:
        blocks.append(_pairs(report.pairs))
    return "\n\n".join(blocks)


def caveats(report: Report) -> list[str]:
    """Reasons to doubt the figures, one line each: a busy machine, noisy rounds, generated images, throttling."""
    lines = []
    machine = report.machine
    if machine.is_busy:
        lines.append(
            f"the machine was busy before the run ({machine.busy_share:.0%} of its processors' time): the figures are "
            "those of a busy machine"
        )
    for figures in report.figures:
        for what, values in (
            ("pipeline", figures.pipeline_images_per_second),
            ("stage by stage", figures.serial_images_per_second),
        ):
            if values.spread > NOISY:
                lines.append(
                    f"{figures.artifact}, batch {figures.batch}, {what}: rounds differ by {values.spread:.0%} "
                    f"({values.least:.1f} to {values.most:.1f} images/s); repeat on a quiet machine, or compare with "
                    "--pair"
                )
    if report.images.is_generated:
        lines.append(
            "the images were generated: decoding and postprocessing take other times than with photographs; give "
            "--images"
        )
    if report.gpu is not None and report.gpu.throttling:
        reasons = ", ".join(
            f"{reason} in {share:.0%} of the samples" for reason, share in report.gpu.throttling.items()
        )
        lines.append(f"the GPU was throttled: {reasons}")
    return lines


def _conditions(report: Report) -> str:
    run, settings = report.run, report.settings
    rows = [
        ("date", run.date),
        ("command", run.command),
        ("toolkit", run.toolkit_version + (f", commit {run.git}" if run.git else "")),
        *_machine(report.machine),
        ("images", _images(report.images)),
        (
            "rounds",
            f"{settings.rounds} of every image, after {settings.warmup_rounds} for warming up"
            + (", alternating between the models" if settings.alternating else ""),
        ),
    ]
    return "\n".join(f"{name:<10}{text}" for name, text in rows)


def _machine(machine: Machine) -> Iterable[tuple[str, str]]:
    quota = f", limited to {machine.cpu_quota:g} processors' time" if machine.cpu_quota is not None else ""
    memory = f", {machine.memory_gb:g} GB" if machine.memory_gb is not None else ""
    yield "processor", f"{machine.cpu}, {machine.usable_processors} of {machine.processors} processors{quota}{memory}"
    if machine.load_average is not None:
        busy = f", {machine.busy_share:.0%} of the processors busy" if machine.busy_share is not None else ""
        yield "load", f"{machine.load_average:g} over the minute before the run{busy}"
    yield "system", f"{machine.system}, Python {machine.python}"
    yield "libraries", ", ".join(f"{name} {version}" for name, version in machine.libraries.items())
    if machine.environment:
        yield "variables", " ".join(f"{name}={value}" for name, value in machine.environment.items())


def _images(image_files: ImageSet) -> str:
    sizes = list(image_files.sizes.items())
    shown = ", ".join(f"{count} of {size}" for size, count in sizes[:4]) + (" …" if len(sizes) > 4 else "")
    return f"{image_files.count} ({shown}), {image_files.mean_bytes / 1000:.0f} kB each; {image_files.source}"


def _artifact(artifact: ModelInfo) -> str:
    return (
        f"{printable(artifact.path)}: {printable(artifact.recipe)}, {artifact.classes} classes, {artifact.precision}, "
        f"{artifact.bytes / 1e6:.1f} MB, SHA-256 {artifact.sha256[:16]}…; {artifact.backend}"
    )


def _figures(figures: Figures) -> str:
    canvases = ", ".join(f"{canvas} × {count}" for canvas, count in figures.canvases.items())
    total = figures.stage_ms["total"]
    lines = [
        f"{figures.artifact}, batch {figures.batch} (canvases: {canvases} batches a round; {total.count} batches)",
        f"{'':<14}{'p50 ms':>9}{'p90 ms':>9}{'p99 ms':>9}{'ms/image':>10}{'images/s':>10}{'share':>8}",
    ]
    for stage in (*STAGES, "rest", "total"):
        values = figures.stage_ms[stage]
        if values.most == 0 and stage not in ("rest", "total"):
            lines.append(f"{stage:<14}{'–':>9}{'–':>9}{'–':>9}{'–':>10}{'–':>10}{'–':>8}")
            continue
        rate = figures.stage_images_per_second.get(stage)
        lines.append(
            f"{stage:<14}{values.p50:9.2f}{values.p90:9.2f}{values.p99:9.2f}{values.mean / figures.batch:10.2f}"
            f"{'–' if rate is None else f'{rate:.1f}':>10}{values.mean / total.mean:8.1%}"
        )
    whole = figures.pipeline_images_per_second
    lines.append(f"{'pipeline':<14}{'':>27}{1e3 / whole.p50:10.2f}{whole.p50:10.1f}   median of {_rounds(whole)}")
    lines.append(
        f"{figures.detections_per_image:.1f} detections per image, NMS on the host for {figures.nms_reruns} of "
        f"{total.count * figures.batch} images"
        + (f"; p99 of {total.count} batches is little more than the slowest" if total.count < FEW else "")
    )
    return "\n".join(lines)


def _memory(memory: Memory) -> str:
    names = " and ".join(memory.artifacts)
    if memory.peak_mb is None or memory.before_mb is None:
        return f"memory: {names}: unknown on this system"
    return f"memory: {names}: {memory.peak_mb:.0f} MB at most, {memory.before_mb:.0f} MB before it was opened"


def _gpu(gpu: GpuReport) -> str:
    parts = [f"{gpu.name}, driver {gpu.driver}"]
    if gpu.clock_mhz is not None:
        limit = f" of {gpu.clock_max_mhz:.0f}" if gpu.clock_max_mhz is not None else ""
        parts.append(f"clock {gpu.clock_mhz[0]:.0f} to {gpu.clock_mhz[1]:.0f}{limit} MHz")
    if gpu.temperature_c is not None:
        parts.append(f"at most {gpu.temperature_c:.0f} °C")
    if gpu.power_w is not None:
        parts.append(f"{gpu.power_w:.0f} W")
    if gpu.memory_used_mb is not None:
        parts.append(f"{gpu.memory_used_mb:.0f} MB of its memory in use by all processes")
    parts.append(f"throttled by {', '.join(gpu.throttling)}" if gpu.throttling else "not throttled")
    return f"GPU: {'; '.join(parts)} ({gpu.samples} samples)"


def _side_by_side(report: Report) -> str:
    width = max(len(figures.artifact) for figures in report.figures)
    peaks = {memory.artifacts[0]: memory.peak_mb for memory in report.memory if len(memory.artifacts) == 1}
    head = f"{'ms/image, p50':<{width}}  batch" + "".join(f"{stage:>12}" for stage in (*STAGES, "total"))
    lines = [head + f"{'pipeline':>16}{'memory':>9}"]
    for figures in report.figures:
        cells = [figures.stage_ms[stage].p50 / figures.batch for stage in (*STAGES, "total")]
        peak = peaks.get(figures.artifact)
        lines.append(
            f"{figures.artifact:<{width}}{figures.batch:7}"
            + "".join(f"{'–' if cell == 0 else f'{cell:.2f}':>12}" for cell in cells)
            + f"{figures.pipeline_images_per_second.p50:9.1f} img/s"
            + (f"{peak:6.0f} MB" if peak is not None else f"{'–':>9}")
        )
    return "\n".join(lines)


def _pairs(pairs: Iterable[Pair]) -> str:
    lines = ["times as fast: median of the ratios of neighbouring rounds (quartiles; least to most)"]
    for pair in pairs:
        lines.append(f"{pair.artifact} against {pair.base}, batch {pair.batch}")
        for name, ratio in (("infer", pair.infer), ("stage by stage", pair.serial), ("pipeline", pair.pipeline)):
            lines.append(
                f"  {name:<15}{ratio.p50:7.3f}  ({ratio.p25:.3f} to {ratio.p75:.3f}; {ratio.least:.3f} to "
                f"{ratio.most:.3f}; {ratio.count} pairs)"
            )
    return "\n".join(lines)


def _rounds(values: Distribution) -> str:
    return f"{values.count} rounds, {values.least:.1f} to {values.most:.1f}"
