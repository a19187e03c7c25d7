"""CUDA majors of installed packages, and drivers, by the packages' own metadata."""

from __future__ import annotations

import importlib
import platform
import sys
from pathlib import Path

import pytest

from runtime.machine import cuda_libraries as module
from runtime.machine.cuda_libraries import (
    Library,
    cuda_libraries,
    cuda_mismatch,
    driver_fits,
    driver_problem,
    install_command,
)

from ...support import distributions

ORT_13, TORCH_12 = Library("onnxruntime-gpu", "1.31.1", 13), Library("torch", "2.10.0", 12)
TORCH_13, ORT_12 = Library("torch", "2.14.1", 13), Library("onnxruntime-gpu", "1.26.0", 12)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only folder that packages are looked for in; on Linux."""
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.setattr(platform, "system", lambda: "Linux")
    return tmp_path


def test_nothing_is_installed(site: Path) -> None:
    assert cuda_libraries() == []
    assert cuda_mismatch([]) is None
    assert driver_problem(None, []) is None


@pytest.mark.parametrize(
    ("package", "cuda"),
    [
        ("onnxruntime-gpu 1.31.1", 13),
        ("onnxruntime-gpu 1.26.0", 12),
        ("onnxruntime-gpu 1.20.2", None),
        ("torch 2.14.1", 13),
        ("torch 2.10.0", 12),
        ("torch 2.9.0+cu128", 12),
        ("torch 2.9.0+cpu", None),
        ("tensorrt-cu13 11.4.0.106", 13),
        ("tensorrt-rtx-cu12 1.3.0", 12),
        ("cuda-python 12.9.0", 12),
    ],
)
def test_cuda_by_a_package_s_metadata(site: Path, package: str, cuda: int | None) -> None:
    distributions.install(site, package)
    assert cuda_libraries() == [Library(*package.split(), cuda)]  # type: ignore[call-arg]


def test_other_packages_are_left_out(site: Path) -> None:
    distributions.install(site, "onnxruntime 1.32.0", "torch 2.14.1", "onnxruntime-gpu 1.31.1")
    (site / "half_gone-1.0.dist-info").mkdir()  # as an interrupted pip leaves it
    assert cuda_libraries() == [ORT_13, TORCH_13]


def test_what_is_required_on_linux_alone(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch's wheels for Windows name the same requirements, and have no CUDA."""
    distributions.install(site, "torch 2.14.1")
    monkeypatch.setattr(platform, "system", lambda: "Windows")
    assert cuda_libraries() == [Library("torch", "2.14.1", None)]


def test_as_the_libraries_themselves_say() -> None:
    """PyTorch of this environment, and ONNX Runtime where it is a build for GPUs."""
    found = {library.distribution: library.cuda for library in cuda_libraries()}
    torch = pytest.importorskip("torch", reason="asked for its own word")
    assert found["torch"] == (int(torch.version.cuda.split(".")[0]) if torch.version.cuda else None)
    if "onnxruntime-gpu" in found:
        assert str(found["onnxruntime-gpu"]) == importlib.import_module("onnxruntime").cuda_version.split(".")[0]


def test_majors_that_differ() -> None:
    assert cuda_mismatch([ORT_13, TORCH_13]) is None
    assert cuda_mismatch([ORT_13, Library("torch", "2.9.0+cpu", None)]) is None
    assert cuda_mismatch([ORT_13, TORCH_12]) == (
        "libraries of different CUDA majors are installed (onnxruntime-gpu 1.31.1 for CUDA 13; torch 2.10.0 for CUDA "
        "12): pip install 'atss-toolkit[cuda13]'"
    )
    line = cuda_mismatch([TORCH_13, ORT_12], driver="550.54.14")
    assert line is not None
    assert line.endswith("pip install 'atss-toolkit[cuda12]'"), "what the driver fits"


def test_no_driver() -> None:
    assert driver_problem(None, [ORT_13]) == (
        "no NVIDIA driver was found, which onnxruntime-gpu 1.31.1 (CUDA 13) needs: install the driver, 580 or newer"
    )


@pytest.mark.parametrize(
    ("driver", "libraries", "expected"),
    [
        ("580.65.06", [ORT_13, TORCH_12], None),
        ("579.99", [TORCH_12], None),
        (
            "550.54.14",
            [ORT_13, TORCH_12],
            "NVIDIA's driver 550.54.14 is too old for onnxruntime-gpu 1.31.1, built for CUDA 13: update the driver to "
            "580 or newer, or take the libraries of CUDA 12, which it fits: pip install 'atss-toolkit[cuda12]'",
        ),
        (
            "470.256.02",
            [ORT_12],
            "NVIDIA's driver 470.256.02 is too old for onnxruntime-gpu 1.26.0, built for CUDA 12: update the driver to "
            "525 or newer",
        ),
        ("470.256.02", [Library("torch", "1", None)], None),
    ],
)
def test_drivers(driver: str, libraries: list[Library], expected: str | None) -> None:
    assert driver_problem(driver, libraries) == expected


def test_a_major_that_is_newer_than_this_toolkit() -> None:
    assert driver_fits("590.1", 14)
    assert install_command(14) == "pip install 'atss-toolkit[gpu]'"
    assert driver_problem("590.1", [Library("torch", "3", 14)]) is None


def test_the_extras_are_of_one_major_each(repository: Path) -> None:
    tomllib = pytest.importorskip("tomllib", reason="Python 3.11 and newer")
    extras = tomllib.loads((repository / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for major, name in module.EXTRAS.items():
        wanted = " ".join(extras[name])
        assert f"tensorrt-cu{major}>=" in wanted
        assert f"cuda-python>={major}" in wanted
        assert f",<{major + 1}" in wanted
        assert "onnxruntime-gpu[cuda,cudnn]>=1." in wanted, "the wheels of CUDA and cuDNN come with it"
    assert sorted(line.split(";")[0] for line in extras["gpu"]) == ["atss-toolkit[cuda12]", "atss-toolkit[cuda13]"]
