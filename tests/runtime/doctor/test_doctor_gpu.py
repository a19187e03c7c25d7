"""The doctor and ONNX Runtime's libraries on a machine with a GPU; what a user with one runs first."""

from __future__ import annotations

import pytest
import torch

from runtime.backends.ort.libraries import preload
from runtime.doctor.trials import run_trials
from runtime.machine.cuda_libraries import cuda_libraries, cuda_mismatch
from runtime.machine.gpus import list_gpus

pytestmark = pytest.mark.gpu
needs_device = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device")


@needs_device
def test_nvml_lists_the_gpus() -> None:
    found = list_gpus()
    assert found.driver is not None, found.problem
    assert found.problem is None
    for gpu in found.gpus:
        assert gpu.pci_bus_id is not None, gpu
        assert gpu.compute_capability is not None, gpu
        assert gpu.memory_free_mb is not None
        assert gpu.memory_total_mb is not None
        assert 0 <= gpu.memory_free_mb <= gpu.memory_total_mb


def test_the_installed_libraries_are_of_one_major() -> None:
    assert cuda_mismatch(cuda_libraries()) is None


def test_cuda_is_found_in_wheels_and_starts() -> None:
    library = pytest.importorskip("onnxruntime", reason="the extra `gpu` brings it")
    if not library.cuda_version:
        pytest.skip("this ONNX Runtime is the build for CPUs: pip install 'atss-toolkit[gpu]'")
    assert preload(library) is None
    (trial,) = run_trials(["cuda"])
    assert trial.runs, trial.said


@needs_device
def test_tensorrt_finds_the_device() -> None:
    (trial,) = run_trials(["tensorrt"])
    if "cannot be imported" in trial.said:
        pytest.skip(trial.said)
    assert trial.runs, trial.said
