"""On a stand-in for nvidia-smi: this runs where there is no GPU."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from runtime.machine.gpus import FIELDS, GpuWatch, parse_line, summarise, tool_index

COOL = "NVIDIA L4, 570.86.15, 2040, 2040, 6251, 61, 71.20, 1200, 23034, 0x0000000000000000"
HOT = "NVIDIA L4, 570.86.15, 1410, 2040, 6251, 84, 72.01, 1350, 23034, 0x0000000000000024"
JETSON = "Orin (nvgpu), 540.4.0, [N/A], [N/A], [N/A], 48, [Not Supported], [N/A], [N/A], [N/A]"


def test_no_sample() -> None:
    assert summarise([]) is None


def test_a_line() -> None:
    sample = parse_line(HOT)
    assert sample is not None
    assert (sample.name, sample.clock_mhz, sample.temperature_c, sample.memory_used_mb) == ("NVIDIA L4", 1410, 84, 1350)
    assert sample.throttling == ("power cap", "thermal slowdown (software)")


@pytest.mark.parametrize("bits", ["0x1", "0x2", "0x100", "0x0"])  # idle, clocks set by the user, display
def test_what_is_no_throttling(bits: str) -> None:
    sample = parse_line(COOL.rsplit(",", 1)[0] + f", {bits}")
    assert sample is not None
    assert sample.throttling == ()


@pytest.mark.parametrize("line", ["", "Unable to determine the device handle", HOT[:60]])
def test_lines_that_are_none(line: str) -> None:
    assert parse_line(line) is None


def test_a_gpu_that_reports_little() -> None:
    sample = parse_line(JETSON)
    assert sample is not None
    report = summarise([sample])
    assert report is not None
    assert (report.name, report.temperature_c, report.clock_mhz, report.power_w) == ("Orin (nvgpu)", 48, None, None)
    assert report.throttling == {}


def test_the_samples_of_a_run() -> None:
    report = summarise([sample for line in (COOL, HOT, COOL, HOT) if (sample := parse_line(line)) is not None])
    assert report is not None
    assert report.clock_mhz == (1410, 2040)
    assert (report.temperature_c, report.memory_used_mb, report.samples) == (84, 1350, 4)
    assert report.throttling == {"power cap": 0.5, "thermal slowdown (software)": 0.5}


def test_the_tool_is_watched_while_the_block_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/asked\nwhile :; do echo "{HOT}"; sleep 0.02; done\n')
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    with GpuWatch(device=1, interval_ms=20) as watch:
        time.sleep(0.3)
    report = watch.report()
    assert report is not None
    assert report.samples >= 2
    assert report.clock_mhz == (1410, 1410)
    asked = (tmp_path / "asked").read_text()
    assert "--id=1" in asked
    assert all(field in asked for field in FIELDS)
    count = report.samples
    time.sleep(0.1)
    assert watch.report() is not None
    assert watch.report().samples == count  # type: ignore[union-attr]


@pytest.mark.parametrize("script", [None, "#!/bin/sh\necho 'NVIDIA-SMI has failed' >&2\nexit 9\n"])
def test_no_tool_or_one_without_a_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str | None) -> None:
    if script is not None:
        (tmp_path / "nvidia-smi").write_text(script)
        (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin" if script else str(tmp_path))
    with GpuWatch() as watch:
        time.sleep(0.05)
    assert watch.report() is None


def test_the_gpu_that_cuda_means(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert tool_index(1) == "1"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3, GPU-8f2c")
    assert [tool_index(0), tool_index(1), tool_index(2)] == ["3", "GPU-8f2c", "2"]
