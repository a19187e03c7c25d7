"""The doctor's report as text: one screen of 120 columns."""

from __future__ import annotations

import textwrap

from ..machine.cuda_libraries import MIN_DRIVER
from .report import Report

_LABEL, _WIDTH = 16, 120


def report_as_text(report: Report) -> str:
    """The whole report, in lines of at most 120 columns wherever they can be broken at a space."""
    machine, run = report.machine, report.run
    checkout = f" ({run.git[:7]}{'+changes' if run.git.endswith('+changes') else ''})" if run.git else ""
    lines = [
        *_row("toolkit", f"{run.toolkit_version}{checkout}, Python {machine.python}, {machine.system}"),
        *_row("processor", f"{report.processor}, {report.processor.architecture}, {_cores(report)}"),
        *_row("int8 files", report.int8),
        *_row("memory", _memory(report)),
        *_row("GPU", _gpus(report)),
        *_row("CUDA", _cuda(report)),
        *_row("packages", ", ".join(f"{name} {version}" for name, version in report.versions.items()) or "none"),
    ]
    if machine.environment:
        lines += _row("environment", ", ".join(f"{name}={value}" for name, value in machine.environment.items()))
    lines.append("backends")
    for trial in report.trials:
        lines += _row(f"  {trial.backend}", f"{'runs: ' if trial.runs else 'no: '}{trial.said}")
    lines += ["advice"] if report.advice else _row("advice", "nothing to repair")
    for line in report.advice:
        lines += _wrapped(line, "  - ", "    ")
    return "\n".join(lines)


def _cores(report: Report) -> str:
    machine = report.machine
    quota = f", a container's limit of {machine.cpu_quota:g}" if machine.cpu_quota is not None else ""
    busy = f", {machine.busy_share:.0%} busy with other work" if machine.is_busy and machine.busy_share else ""
    return f"{machine.usable_processors} of {machine.processors} cores{quota}{busy}"


def _memory(report: Report) -> str:
    free, total = report.memory_free_gb, report.machine.memory_gb
    return f"{'?' if free is None else free} of {'?' if total is None else total} GB free"


def _gpus(report: Report) -> str:
    gpus = report.gpus
    driver = f"driver {gpus.driver}" if gpus.driver is not None else "no NVIDIA driver"
    if not gpus.gpus:
        return f"none ({driver}; {gpus.problem})"
    named = []
    for gpu in gpus.gpus:
        capability = f", compute capability {gpu.compute_capability}" if gpu.compute_capability else ""
        memory = ""
        if gpu.memory_free_mb is not None and gpu.memory_total_mb is not None:
            memory = f", {gpu.memory_free_mb / 1024:.1f} of {gpu.memory_total_mb / 1024:.1f} GiB free"
        named.append(f"{gpu.index}: {gpu.name}{capability}{memory}")
    return f"{'; '.join(named)}; {driver}"


def _cuda(report: Report) -> str:
    built = [f"{library} for {library.cuda or 'no CUDA'}" for library in report.cuda]
    drivers = ", ".join(f"{major} from {least}" for major, least in sorted(MIN_DRIVER.items()) if major >= 12)
    return f"{', '.join(built) or 'no libraries'} (drivers: {drivers})"


def _row(label: str, text: str) -> list[str]:
    return _wrapped(text, f"{label:<{_LABEL}}", " " * _LABEL)


def _wrapped(text: str, first: str, rest: str) -> list[str]:
    return textwrap.wrap(
        text, _WIDTH, initial_indent=first, subsequent_indent=rest, break_long_words=False, break_on_hyphens=False
    )
