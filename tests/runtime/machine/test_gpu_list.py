"""The driver and the GPUs, on a stand-in for NVML."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from runtime.machine import gpus as module
from runtime.machine.gpus import Gpu, Gpus, list_gpus

from ...support.nvml import FakeGpu, FakeNvml

OPEN = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build  (root@b)  Sun Jul 27\n"
CLOSED = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat Aug 19 01:15:15 UTC 2023\nGCC version: 12\n"
NOT_FOUND = "NVML, which comes with NVIDIA's driver, was not found"


@pytest.fixture(autouse=True)
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file in which the kernel names its driver; it is missing until a test writes it."""
    monkeypatch.setattr(module, "DRIVER_FILE", tmp_path / "version")
    return tmp_path / "version"


def use(monkeypatch: pytest.MonkeyPatch, fake: FakeNvml | None) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", fake)  # type: ignore[arg-type]


def test_no_package_and_no_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, None)
    found = list_gpus()
    assert (found.driver, found.gpus, found.driver_failed) == (None, (), False)
    assert found.problem is not None
    assert found.problem.endswith(": pip install nvidia-ml-py")


@pytest.mark.parametrize(
    ("system", "release", "unknown"),
    [("Linux", "6.8.0-45-generic", False), ("Linux", "5.15.0-microsoft-standard-WSL2", True), ("Windows", "11", True)],
)
def test_without_the_package_only_linux_tells_of_a_driver(
    monkeypatch: pytest.MonkeyPatch, kernel: Path, system: str, release: str, unknown: bool
) -> None:
    monkeypatch.setattr(module.platform, "system", lambda: system)
    monkeypatch.setattr(module.platform, "release", lambda: release)
    use(monkeypatch, None)
    assert list_gpus().driver_unknown is unknown
    use(monkeypatch, FakeNvml(broken="LIBRARY_NOT_FOUND"))
    assert list_gpus().driver_unknown is False
    use(monkeypatch, None)
    kernel.write_text(OPEN)
    assert list_gpus().driver_unknown is False


@pytest.mark.parametrize(("text", "driver"), [(OPEN, "580.65.06"), (CLOSED, "535.104.05"), ("nonsense\n", None)])
def test_the_driver_of_the_kernel_where_nvml_is_missing(
    monkeypatch: pytest.MonkeyPatch, kernel: Path, text: str, driver: str | None
) -> None:
    kernel.write_text(text)
    use(monkeypatch, FakeNvml(broken="LIBRARY_NOT_FOUND"))
    assert list_gpus() == Gpus(driver, (), NOT_FOUND)


def test_two_gpus_by_their_place_on_the_bus(monkeypatch: pytest.MonkeyPatch) -> None:
    later = FakeGpu("NVIDIA RTX A4000", "00000000:81:00.0", "GPU-2", (8, 6), (212 << 20, 0, 16376 << 20))
    fake = FakeNvml([later, FakeGpu()])
    use(monkeypatch, fake)
    assert list_gpus() == Gpus(
        "580.65.06",
        (
            Gpu(0, "NVIDIA L4", "8.9", 22500, 23034, "00000000:01:00.0"),
            Gpu(1, "NVIDIA RTX A4000", "8.6", 212, 16376, "00000000:81:00.0"),
        ),
        None,
    )
    assert fake.users == 0, "it was shut down"


def test_a_gpu_that_reports_little(monkeypatch: pytest.MonkeyPatch) -> None:
    lacks = ("nvmlDeviceGetMemoryInfo", "nvmlDeviceGetCudaComputeCapability", "nvmlDeviceGetPciInfo")
    use(monkeypatch, FakeNvml([FakeGpu("Orin (nvgpu)", lacks=lacks)], "540.4.0"))
    assert list_gpus() == Gpus("540.4.0", (Gpu(0, "Orin (nvgpu)", None, None, None),), None)


def test_a_driver_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, FakeNvml())
    assert list_gpus() == Gpus("580.65.06", (), "the driver lists no GPU")


def test_a_driver_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, FakeNvml(broken="LIB_RM_VERSION_MISMATCH"))
    found = list_gpus()
    assert found == Gpus(None, (), "NVML failed: Lib Rm Version Mismatch")
    assert found.driver_failed


def test_a_driver_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeNvml([FakeGpu()])
    monkeypatch.setattr(fake, "nvmlInit", lambda: time.sleep(1))
    use(monkeypatch, fake)
    found = list_gpus(limit_s=0.05)
    assert found == Gpus(None, (), "NVML failed: the driver does not answer")
    assert found.driver_failed
