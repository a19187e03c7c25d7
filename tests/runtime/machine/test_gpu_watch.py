"""On a stand-in for NVML: this runs where there is no GPU."""

from __future__ import annotations

import sys
import time

import pytest

from runtime.machine import gpu_watch as module
from runtime.machine.gpu_watch import GpuSample, GpuWatch, summarise

from ...support.nvml import FakeGpu, FakeNvml

COOL = GpuSample(2040, 61, 71.2, 1200, ())
HOT = GpuSample(1410, 84, 72.01, 1350, ("power cap", "thermal slowdown (software)"))
LITTLE = GpuSample(None, 48, None, None, ())
ABOUT = ("NVIDIA L4", "570.86.15", 2040)


def use(monkeypatch: pytest.MonkeyPatch, fake: FakeNvml | None) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", fake)  # type: ignore[arg-type]
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def test_no_sample() -> None:
    assert summarise(*ABOUT, []) is None


def test_a_gpu_that_reports_little() -> None:
    report = summarise("Orin (nvgpu)", "540.4.0", None, [LITTLE])
    assert report is not None
    assert (report.name, report.temperature_c, report.clock_mhz, report.power_w) == ("Orin (nvgpu)", 48, None, None)
    assert report.throttling == {}


def test_the_samples_of_a_run() -> None:
    report = summarise(*ABOUT, [COOL, HOT, COOL, HOT])
    assert report is not None
    assert (report.name, report.driver, report.samples, report.clock_max_mhz) == ("NVIDIA L4", "570.86.15", 4, 2040)
    assert report.clock_mhz == (1410, 2040)
    assert (report.temperature_c, report.power_w, report.memory_used_mb) == (84, 72.01, 1350)
    assert report.throttling == {"power cap": 0.5, "thermal slowdown (software)": 0.5}


def test_a_gpu_is_watched_while_the_block_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = FakeGpu("NVIDIA RTX A4000", "00000000:81:00.0", "GPU-2", clocks=(2040, 1410), temperatures=(61, 84, 70))
    gpu.reasons = (0, 0x24)
    fake = FakeNvml([FakeGpu(), gpu])
    use(monkeypatch, fake)
    with GpuWatch(device=0, pci_bus_id=lambda device: "0000:81:00.0", interval_ms=5) as watch:
        until = time.monotonic() + 10
        while gpu.calls.get("temperatures", 0) < 4 and time.monotonic() < until:
            time.sleep(0.005)
    report = watch.report()
    assert report is not None
    assert (report.name, report.driver) == ("NVIDIA RTX A4000", "580.65.06")
    assert (report.clock_mhz, report.temperature_c, report.memory_used_mb) == ((1410, 2040), 84, 100)
    assert report.samples >= 4
    assert report.throttling["power cap"] == (report.samples - 1) / report.samples
    assert watch.problem is None
    assert fake.users == 0
    time.sleep(0.05)
    assert watch.report() == report, "nothing is sampled after the block"


def test_a_block_that_ends_at_once_has_a_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, FakeNvml([FakeGpu()]))
    with GpuWatch() as watch:
        pass
    report = watch.report()
    assert report is not None
    assert report.samples == 1


@pytest.mark.parametrize(
    ("fake", "problem"),
    [
        (None, "pip install nvidia-ml-py"),
        (FakeNvml(broken="LIBRARY_NOT_FOUND"), "was not found"),
        (FakeNvml(broken="DRIVER_NOT_LOADED"), "NVML failed: Driver Not Loaded"),
        (FakeNvml(), "NVML lists no GPU 0"),
    ],
)
def test_where_no_gpu_can_be_watched_the_block_runs(
    monkeypatch: pytest.MonkeyPatch, fake: FakeNvml | None, problem: str
) -> None:
    use(monkeypatch, fake)
    with GpuWatch() as watch:
        time.sleep(0.01)
    assert watch.report() is None
    assert watch.problem is not None
    assert watch.problem.endswith(problem)


def test_a_driver_that_hangs_holds_nothing_up(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeNvml([FakeGpu()])
    monkeypatch.setattr(fake, "nvmlInit", lambda: time.sleep(1))
    monkeypatch.setattr(module, "LIMIT_S", 0.05)
    use(monkeypatch, fake)
    with GpuWatch() as watch:
        pass
    assert watch.report() is None
    assert watch.problem == "NVML failed: the driver does not answer"
