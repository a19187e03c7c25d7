"""Commands in a process that cannot import some libraries, as on a machine where they are not installed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

BLOCKED = """
import importlib.abc, runpy, sys

module, blocked = sys.argv[1], sys.argv[2].split()

class Block(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in blocked:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Block())
sys.argv = sys.argv[:1] + sys.argv[3:]
runpy.run_module(module, run_name="__main__", alter_sys=True)
"""
TRAINING = "torch torchvision onnxscript onnxruntime openvino timm"


def run_without(
    libraries: str, repository: Path, *arguments: str, module: str = "export.to_trt"
) -> subprocess.CompletedProcess[str]:
    """A command in a process that cannot import these."""
    return subprocess.run(
        [sys.executable, "-c", BLOCKED, module, libraries, *arguments],
        cwd=repository,
        env={"PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
