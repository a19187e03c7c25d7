"""NVML and CUDA on a machine with a GPU: that both mean the same one."""

from __future__ import annotations

import time

import pytest

from runtime.cuda import CudaError, open_cuda, pci_bus_id
from runtime.machine.gpu_watch import GpuWatch
from runtime.machine.gpus import list_gpus

pytestmark = pytest.mark.gpu


def test_the_gpu_that_is_watched_is_cuda_s() -> None:
    try:
        device = open_cuda(0).device
    except CudaError as error:
        pytest.skip(str(error))
    with GpuWatch(0, pci_bus_id, interval_ms=50) as watch:
        time.sleep(0.3)
    report = watch.report()
    assert report is not None, watch.problem
    assert report.name == device.name
    assert report.samples >= 2
    assert report.clock_mhz is not None


def test_cuda_s_bus_id_is_among_nvml_s() -> None:
    bus_id = pci_bus_id(0)
    if bus_id is None:
        pytest.skip("no CUDA binding, or no device")
    listed = [gpu.pci_bus_id for gpu in list_gpus().gpus]
    assert any(found is not None and found.lower().endswith(bus_id.lower()) for found in listed), (bus_id, listed)
