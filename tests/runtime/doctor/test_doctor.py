"""What the doctor says: of this machine, and of machines with a GPU that aren't there."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from runtime.doctor import report as doctor
from runtime.doctor.__main__ import main
from runtime.doctor.findings import find_problems, int8_advice
from runtime.doctor.text import report_as_text
from runtime.doctor.trials import BACKENDS, Trial
from runtime.machine.cuda_libraries import Library
from runtime.machine.gpus import Gpu, Gpus
from runtime.machine.processor import Processor

from ...support import distributions

ZEN4 = Processor("x86_64", "AMD EPYC 9B14", frozenset({"avx2", "avx512f", "avx512_vnni"}))
ZEN2 = Processor("x86_64", "AMD EPYC 7B12", frozenset({"avx2"}))
UNREADABLE = Processor("x86_64", None, frozenset())
RUNS = [Trial("cpu", True, "ONNX Runtime 1.32.0, CPUExecutionProvider")]
NO_GPU = Gpus(None, (), "NVML was not found")
L4 = Gpu(0, "NVIDIA L4", "8.9", 22500, 23034)
ORT, TORCH, CUDA_PYTHON = (
    Library("onnxruntime-gpu", "1.31.1", 13),
    Library("torch", "2.14.1", 13),
    Library("cuda-python", "13.4.4", 13),
)
TENSORRT = Library("tensorrt-cu13", "11.4.0.106", 13)


def advice(
    gpus: Gpus = NO_GPU,
    libraries: Sequence[Library] = (),
    packages: Sequence[str] = ("onnxruntime",),
    processor: Processor = ZEN4,
    trials: Sequence[Trial] = RUNS,
) -> list[str]:
    lines = find_problems(gpus, libraries, dict.fromkeys(packages, "1.0"), processor, trials)
    assert not any("\n" in line for line in lines)
    return lines


def one(lines: list[str]) -> str:
    (line,) = lines
    return line


def test_nothing_to_mend() -> None:
    assert advice() == []
    assert advice(libraries=[TORCH, CUDA_PYTHON]) == [], "these are for CUDA on machines without a GPU too"
    assert advice(Gpus("580.65.06", (L4,), None), [ORT, TORCH, TENSORRT, CUDA_PYTHON], ["onnxruntime-gpu"]) == []


def test_nothing_runs() -> None:
    line = one(advice(packages=[], trials=[Trial("cpu", False, "onnxruntime cannot be imported")]))
    assert line.startswith("no installed backend runs a model: pip install 'atss-toolkit[cpu]'")


def test_both_builds_of_onnx_runtime() -> None:
    line = one(advice(packages=["onnxruntime", "onnxruntime-gpu"]))
    assert line.endswith("pip uninstall onnxruntime onnxruntime-gpu, then pip install 'atss-toolkit[cpu]'")
    line = one(
        advice(Gpus("550.54", (L4,), None), [Library("onnxruntime-gpu", "1", 12)], ["onnxruntime", "onnxruntime-gpu"])
    )
    assert line.endswith("then pip install 'atss-toolkit[cuda12]'")


def test_no_driver() -> None:
    assert one(advice(NO_GPU, [ORT, TORCH], ["onnxruntime-gpu"])) == (
        "no NVIDIA driver was found, which onnxruntime-gpu 1.31.1 (CUDA 13) needs: install the driver, 580 or newer "
        "(NVML was not found); on a machine without an NVIDIA GPU: pip install 'atss-toolkit[cpu]' in place "
        "of onnxruntime-gpu"
    )
    failed = Gpus(None, (), "NVML failed: Driver/library version mismatch")
    assert one(advice(failed)).startswith(
        "NVML failed: Driver/library version mismatch: reinstall NVIDIA's driver, or restart the machine"
    )
    assert "NVML failed: Driver/library version mismatch" in one(advice(failed, [ORT], ["onnxruntime-gpu"]))
    unlisted = Gpus("580.1", (), "nvidia-ml-py cannot be imported (no such module): pip install nvidia-ml-py")
    assert one(advice(unlisted)) == (
        "NVIDIA's driver is loaded, but its GPUs cannot be listed: nvidia-ml-py cannot be imported (no such module): "
        "pip install nvidia-ml-py"
    )


def test_a_driver_that_cannot_be_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.system", lambda: "Windows")
    missing = Gpus(None, (), "nvidia-ml-py cannot be imported (no such module): pip install nvidia-ml-py")
    assert one(advice(missing, [ORT], ["onnxruntime-gpu"])) == f"NVIDIA's driver cannot be checked: {missing.problem}"
    assert advice(missing) == []


def test_a_driver_that_is_too_old() -> None:
    assert one(advice(Gpus("550.54.14", (L4,), None), [ORT, TENSORRT], ["onnxruntime-gpu"])) == (
        "NVIDIA's driver 550.54.14 is too old for onnxruntime-gpu 1.31.1, tensorrt-cu13 11.4.0.106, built for CUDA 13: "
        "update the driver to 580 or newer, or take the libraries of CUDA 12, which it fits: pip install "
        "'atss-toolkit[cuda12]'"
    )


def test_a_library_of_another_major() -> None:
    line = one(advice(Gpus("580.1", (L4,), None), [ORT, Library("torch", "2.10.0", 12)], ["onnxruntime-gpu"]))
    assert line.startswith(
        "libraries of different CUDA majors are installed (onnxruntime-gpu 1.31.1 for CUDA 13; torch 2"
    )
    assert line.endswith(": pip install 'atss-toolkit[cuda13]'")
    lines = advice(NO_GPU, [ORT, dataclasses.replace(TENSORRT, cuda=12)], ["onnxruntime-gpu"])
    assert sum("different CUDA majors" in line for line in lines) == 1


def test_a_gpu_without_memory() -> None:
    full = Gpus("580.1", (L4, Gpu(1, "NVIDIA L4", "8.9", 212, 23034)), None)
    assert one(advice(full, [ORT], ["onnxruntime-gpu"])) == (
        "GPU 1 (NVIDIA L4) has 212 of 23034 MiB free, CUDA alone takes about 500: end what runs there (nvidia-smi "
        "lists it), or use another GPU (--device N)"
    )


def test_a_gpu_that_cuda_13_dropped() -> None:
    old = Gpus("580.1", (Gpu(0, "Tesla V100", "7.0", 16000, 16384),), None)
    assert one(advice(old, [ORT], ["onnxruntime-gpu"])) == (
        "GPU 0 (Tesla V100) has compute capability 7.0, CUDA 13 (onnxruntime-gpu 1.31.1) needs 7.5 or more: pip "
        "install 'atss-toolkit[cuda12]'"
    )
    assert advice(Gpus("580.1", (dataclasses.replace(old.gpus[0], compute_capability="10.0"),), None), [ORT]) == []


def test_a_gpu_that_nothing_uses() -> None:
    assert one(advice(Gpus("580.1", (L4,), None), [CUDA_PYTHON])) == (
        "there is a GPU, but nothing that runs models on it: pip uninstall onnxruntime, then pip install "
        "'atss-toolkit[cuda13]'"
    )
    lines = advice(Gpus("450.1", (L4,), None), [Library("torch", "2.9.0+cpu", None)], [])
    assert lines == [
        "there is a GPU, but nothing that runs models on it: update NVIDIA's driver",
        "torch 2.9.0+cpu is a build without CUDA, so it trains on the CPU: pip uninstall torch, update NVIDIA's driver",
    ]


def test_a_processor_that_cannot_be_read() -> None:
    line = one(advice(processor=UNREADABLE))
    assert line.startswith("the processor's features cannot be read, so cpu-vnni files count as inexact here")
    assert "cannot be read" in int8_advice(UNREADABLE)
    assert advice(processor=ZEN2) == [], "nothing is wrong with it"


def test_which_int8_is_right() -> None:
    assert int8_advice(ZEN4).startswith("--target cpu or cpu-vnni")
    assert "cpu-vnni files would saturate here" in int8_advice(ZEN2)


# The report -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def report(monkeypatch: pytest.MonkeyPatch) -> doctor.Report:
    """Of a machine with two GPUs, one of them full, on this machine's processor."""
    gpus = Gpus("580.65.06", (L4, Gpu(1, "NVIDIA RTX A4000", None, 212, 16376)), None)
    monkeypatch.setattr(doctor, "list_gpus", lambda: gpus)
    monkeypatch.setattr(doctor, "cuda_libraries", lambda: [ORT, TORCH, TENSORRT, CUDA_PYTHON])
    monkeypatch.setattr(
        doctor, "run_trials", lambda: [Trial(name, name != "cpu", "because " * 40) for name in BACKENDS]
    )
    return doctor.diagnose()


def test_the_text_is_one_screen(report: doctor.Report) -> None:
    lines = report_as_text(report).splitlines()
    assert max(map(len, lines)) <= 120
    assert len(lines) <= 50
    text = " ".join(" ".join(lines).split())
    assert "GPU 0: NVIDIA L4, compute capability 8.9, 22.0 of 22.5 GiB free; 1: NVIDIA RTX A4000, 0.2 of 16.0" in text
    assert "driver 580.65.06" in text
    assert "onnxruntime-gpu 1.31.1 for 13, torch 2.14.1 for 13" in text
    assert "cpu no: because" in text
    assert "openvino runs: because" in text
    assert "- GPU 1 (NVIDIA RTX A4000) has 212 of 16376 MiB free" in text


def test_json_has_all_of_it(report: doctor.Report) -> None:
    content = json.loads(json.dumps(doctor.to_jsonable(report)))
    assert content.keys() == {field.name for field in dataclasses.fields(doctor.Report)}
    assert content["gpus"]["gpus"][1]["memory_free_mb"] == 212
    assert [trial["backend"] for trial in content["trials"]] == list(BACKENDS)
    assert content["processor"]["features"] == sorted(report.processor.features)
    assert content["processor"]["sums_8_bit_products_exactly"] == report.processor.sums_8_bit_products_exactly
    assert content["cuda"][0] == {"distribution": "onnxruntime-gpu", "version": "1.31.1", "cuda": 13}
    assert len(content["advice"]) == 1 + (report.processor.sums_8_bit_products_exactly is None)


# The command ----------------------------------------------------------------------------------------------------------


def run(repository: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "runtime.doctor", *arguments],
        cwd=repository,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )


def test_on_this_machine(repository: Path) -> None:
    done = run(repository)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert len(lines) <= 60
    assert [line.split()[0] for line in lines if line.startswith("  ") and line[2] != " " and line[2] != "-"] == list(
        BACKENDS
    )
    with pytest.raises(SystemExit, match="2"):
        main(["--no-such-option"])


def test_with_no_backend_at_all(repository: Path, tmp_path: Path) -> None:
    for name in ("onnxruntime", "openvino", "tensorrt", "tensorrt_rtx", "cuda", "pycuda", "pynvml", "torch"):
        (tmp_path / f"{name}.py").write_text("raise ImportError('blocked')")
    (tmp_path / "bin").mkdir()
    done = run(repository, "--json", PYTHONPATH=str(tmp_path), PATH=str(tmp_path / "bin"))
    assert (done.returncode, done.stderr) == (0, "")
    content = json.loads(done.stdout)
    assert [trial["runs"] for trial in content["trials"]] == [False] * len(BACKENDS)
    assert all("blocked" in trial["said"] or "plugin" in trial["said"] for trial in content["trials"])
    assert content["advice"][0].startswith("no installed backend runs a model: pip install 'atss-toolkit[cpu]'")
    assert content["gpus"]["problem"] == "nvidia-ml-py cannot be imported (blocked): pip install nvidia-ml-py"


PYNVML = """
import sys
from tests.support.nvml import MIB, FakeGpu, FakeNvml
sys.modules["pynvml"] = FakeNvml([FakeGpu(memory=(212 * MIB, 22822 * MIB, 23034 * MIB))], driver="550.54.14")
"""


def test_with_a_fake_of_a_gpu(repository: Path, tmp_path: Path) -> None:
    """NVML and packages as such a machine has them, whose driver is too old and whose memory is full."""
    site = distributions.install(tmp_path / "site", "onnxruntime-gpu 1.31.1", "tensorrt-cu13 11.4.0.106")
    (site / "pynvml.py").write_text(PYNVML)
    (site / "onnxruntime.py").write_text("raise ImportError('libcudart.so.13: cannot open shared object file')")
    done = run(repository, "--json", PYTHONPATH=str(site))
    assert (done.returncode, done.stderr) == (0, "")
    content = json.loads(done.stdout)
    assert content["gpus"] == {
        "driver": "550.54.14",
        "gpus": [
            {
                "index": 0,
                "name": "NVIDIA L4",
                "compute_capability": "8.9",
                "memory_free_mb": 212,
                "memory_total_mb": 23034,
                "pci_bus_id": "00000000:01:00.0",
            }
        ],
        "problem": None,
    }
    assert {"distribution": "onnxruntime-gpu", "version": "1.31.1", "cuda": 13} in content["cuda"]
    told = "\n".join(content["advice"])
    assert "NVIDIA's driver 550.54.14 is too old for onnxruntime-gpu 1.31.1" in told
    assert "pip install 'atss-toolkit[cuda12]'" in told
    assert "GPU 0 (NVIDIA L4) has 212 of 23034 MiB free" in told
    cuda = next(trial for trial in content["trials"] if trial["backend"] == "cuda")
    assert "libcudart.so.13: cannot open shared object file" in cuda["said"]
