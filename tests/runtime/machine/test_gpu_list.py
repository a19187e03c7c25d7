"""The driver and the GPUs, on stand-ins for nvidia-smi."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from runtime.machine import gpus as gpu
from runtime.machine.gpus import Gpu, Gpus, list_gpus

TWO = "0, NVIDIA L4, 580.65.06, 22500, 23034, 8.9\n1, NVIDIA RTX A4000, 580.65.06, 212, 16376, 8.6\n"
OPEN = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build  (root@b)  Sun Jul 27\n"
CLOSED = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat Aug 19 01:15:15 UTC 2023\nGCC version: 12\n"


@pytest.fixture
def tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes a tool of a shell script; without a call there is none. No driver in the kernel."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(gpu, "_DRIVER_FILE", tmp_path / "version")

    def make(script: str) -> None:
        (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "nvidia-smi").chmod(0o755)

    make.folder = tmp_path  # type: ignore[attr-defined]
    return make


def test_no_tool(tool: Any) -> None:
    assert list_gpus() == Gpus(None, (), "nvidia-smi is not installed")


@pytest.mark.parametrize(("text", "driver"), [(OPEN, "580.65.06"), (CLOSED, "535.104.05"), ("nonsense\n", None)])
def test_the_driver_of_the_kernel_where_there_is_no_tool(tool: Any, text: str, driver: str | None) -> None:
    (tool.folder / "version").write_text(text)
    assert list_gpus() == Gpus(driver, (), "nvidia-smi is not installed")


def test_two_gpus(tool: Any) -> None:
    tool(f"printf '{TWO}'")
    assert list_gpus() == Gpus(
        "580.65.06",
        (Gpu(0, "NVIDIA L4", "8.9", 22500, 23034), Gpu(1, "NVIDIA RTX A4000", "8.6", 212, 16376)),
        None,
    )


def test_a_gpu_that_reports_little(tool: Any) -> None:
    tool("echo '0, Orin (nvgpu), 540.4.0, [N/A], [N/A], [N/A]'")
    assert list_gpus() == Gpus("540.4.0", (Gpu(0, "Orin (nvgpu)", None, None, None),), None)


def test_a_tool_before_compute_capabilities(tool: Any) -> None:
    tool(
        'case "$*" in *compute_cap*) echo \'Field "compute_cap" is not a valid field to query.\'; exit 2 ;; esac\n'
        "echo '0, Tesla T4, 450.80.02, 15000, 15109'"
    )
    assert list_gpus() == Gpus("450.80.02", (Gpu(0, "Tesla T4", None, 15000, 15109),), None)


@pytest.mark.parametrize(
    ("script", "problem"),
    [
        ("echo 'NVIDIA-SMI has failed because' >&2; echo more >&2; exit 9", "failed: NVIDIA-SMI has failed because"),
        ("exit 6", "failed: exit code 6"),
        ("echo No devices were found", "lists no GPU"),
        ("true", "lists no GPU"),
    ],
)
def test_a_tool_that_has_nothing_to_say(tool: Any, script: str, problem: str) -> None:
    tool(script)
    assert list_gpus() == Gpus(None, (), f"nvidia-smi {problem}")


def test_a_tool_that_cannot_be_run_or_hangs(tool: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (tool.folder / "nvidia-smi").write_bytes(b"\x7fELF, for another processor")
    (tool.folder / "nvidia-smi").chmod(0o755)
    found = list_gpus()
    assert found.problem is not None
    assert found.problem.startswith("nvidia-smi cannot be run: ")

    def hang(command: list[str], **_: object) -> None:
        raise subprocess.TimeoutExpired(command, 20)

    monkeypatch.setattr(gpu.subprocess, "run", hang)
    assert list_gpus() == Gpus(None, (), "nvidia-smi does not answer")
