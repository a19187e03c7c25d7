"""The layers hold: runtime ◀ train ◀ export, and runtime runs where torch is not installed."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

# Own packages each package may import, and libraries that no module of runtime may import anywhere in it.
ALLOWED = {
    "runtime": {"runtime"},
    "train": {"runtime", "train"},
    "export": {"runtime", "train", "export"},
}
RUNTIME_LIBRARIES = {"numpy", "cv2", "PIL", "pycocotools", "simplejpeg", "tqdm"}
BACKEND_LIBRARIES = {  # inside functions only
    "onnxruntime",
    "onnxruntime_ep_nv_tensorrt_rtx",
    "openvino",
    "tensorrt",
    "tensorrt_rtx",
    "cuda",
    "pycuda",
    # Not backends: a decoder, and what a benchmark draws with and is driven by. Detecting needs none of them.
    "nvidia",
    "matplotlib",
    "mlperf_loadgen",
    # What writes the HTML page of a report.
    "jinja2",
    "markupsafe",
    # What shares work out to other machines, what Parquet files are read with, and what detections are handed to.
    "ray",
    "pyarrow",
    "supervision",
    # The client of a Triton Inference Server, and what a model in it talks to the server with.
    "tritonclient",
    "triton_python_backend_utils",
}


def imports(source: str) -> list[tuple[str, bool]]:
    """(top-level package, whether at module level) of each absolute import of a module's source."""
    tree = ast.parse(source)
    inside = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for node in ast.walk(function)
    }
    found = []
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [node.module or ""]
        found += [(name.split(".")[0], id(node) not in inside) for name in names]
    return found


def violations(package: str, source: str) -> list[str]:
    problems = []
    for name, is_at_module_level in imports(source):
        if name in ALLOWED and name not in ALLOWED[package]:
            problems.append(f"imports {name}")
        if package == "runtime" and name not in sys.stdlib_module_names | RUNTIME_LIBRARIES | {"runtime"}:
            if name not in BACKEND_LIBRARIES:
                problems.append(f"imports {name}, which runtime may not need")
            elif is_at_module_level:
                problems.append(f"imports {name} at module level; do so when the backend is opened")
    return problems


@pytest.mark.parametrize("package", ALLOWED)
def test_packages_import_only_what_lies_below_them(package: str, repository: Path) -> None:
    files = sorted((repository / package).rglob("*.py"))
    assert files
    problems = {
        str(file.relative_to(repository)): found
        for file in files
        if (found := violations(package, file.read_text(encoding="utf-8")))
    }
    assert problems == {}


@pytest.mark.parametrize(
    ("package", "source"),
    [
        ("runtime", "import torch"),
        ("runtime", "def f():\n    from torch import nn"),
        ("runtime", "import onnxruntime"),
        ("runtime", "from train.geometry.boxes import iou"),
        ("train", "import export.graph.deployable"),
    ],
)
def test_a_planted_violation_is_found(package: str, source: str) -> None:
    assert len(violations(package, source)) >= 1


def test_what_is_allowed_is_not_reported() -> None:
    assert violations("runtime", "import json\nimport numpy\nfrom .nms import nms\n") == []
    assert violations("runtime", "def open():\n    import onnxruntime\n") == []
    assert (
        violations("export", "import torch\nfrom train.geometry.boxes import iou\nfrom runtime.nms import nms\n") == []
    )


def test_no_module_is_named_like_a_package_it_imports(repository: Path) -> None:
    """A script's own folder comes first on the path: export/onnx.py would be imported in onnx's place."""
    files = [file for package in ALLOWED for file in (repository / package).rglob("*.py")]
    imported: dict[Path, set[str]] = {}  # by all modules of a folder
    for file in files:
        imported.setdefault(file.parent, set()).update(name for name, _ in imports(file.read_text("utf-8")))
    shadows = [file for file in files if file.stem in imported[file.parent]]
    assert shadows == []


BLOCKED = """
import importlib.abc, pkgutil, sys

class Block(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        blocked = "torch torchvision onnx onnxruntime openvino train export tensorrt timm matplotlib jinja2".split()
        if name.split(".")[0] in (*blocked, "mlperf_loadgen", "ray", "pyarrow", "supervision"):
            raise ImportError(f"{name} is blocked")

sys.meta_path.insert(0, Block())
import runtime
names = [module.name for module in pkgutil.walk_packages(runtime.__path__, "runtime.")]
names.remove("runtime.evaluate")  # refuses to be imported: it would take the place of the function
for name in names:
    importlib.import_module(name)
print(len(names))
"""


def test_every_module_of_runtime_imports_without_torch_or_a_backend(repository: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", BLOCKED], cwd=repository, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    modules = [file for file in (repository / "runtime").rglob("*.py") if file.parent != repository / "runtime"]
    assert int(done.stdout) >= len(list((repository / "runtime").glob("*.py"))) - 2 + len(modules)


def test_the_block_itself_works(repository: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", BLOCKED + "\nimport torch"], cwd=repository, capture_output=True, text=True, check=False
    )
    assert "torch is blocked" in done.stderr
