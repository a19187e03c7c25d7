"""Installed packages that aren't: folders of metadata as pip writes them, abridged from the real packages' own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

REQUIREMENTS: dict[str, Sequence[str]] = {
    "onnxruntime-gpu 1.31.1": ('nvidia-cuda-nvrtc~=13.0; extra == "cuda"', 'nvidia-cudnn-cu13~=9.0; extra == "cudnn"'),
    "onnxruntime-gpu 1.26.0": ('nvidia-cuda-nvrtc-cu12~=12.0; extra == "cuda"',),
    "torch 2.14.1": (
        "typing-extensions>=4.10.0",
        'cuda-toolkit[cublas,cudart,nvrtc]==13.0.3.0; platform_system == "Linux"',
        'nvidia-cudnn-cu13==9.24.0.43; platform_system == "Linux"',
    ),
    "torch 2.10.0": (
        "filelock",
        'nvidia-cuda-nvrtc-cu12==12.8.93; platform_system == "Linux" and platform_machine == "x86_64"',
    ),
    "torch 2.9.0+cu128": (),
    "torch 2.9.0+cpu": ("filelock", 'nvidia-cublas==13.1.0; platform_system == "Linux"'),
    "cuda-python 13.4.4": ("cuda-bindings~=13.4.4",),
    "cuda-python 12.9.0": ("cuda-bindings~=12.9.0",),
    "tensorrt-cu13 11.4.0.106": ("tensorrt-cu13-libs==11.4.0.106",),
    "tensorrt-rtx-cu12 1.3.0": (),
    "onnxruntime 1.32.0": ("numpy>=1.21.6",),
    "onnxruntime-gpu 1.20.2": ("numpy>=1.21.6",),  # it requires nothing of CUDA's, with no extra either
}


def install(folder: Path, *packages: str) -> Path:
    """Write metadata of packages such as "torch 2.14.1" into a folder that is, or will be, on the path."""
    for package in packages:
        name, version = package.split()
        info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir(parents=True)
        lines = [f"Name: {name}", f"Version: {version}", *(f"Requires-Dist: {r}" for r in REQUIREMENTS[package])]
        (info / "METADATA").write_text("\n".join(["Metadata-Version: 2.1", *lines, "", ""]))
    return folder
