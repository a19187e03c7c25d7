"""The portability matrix: every cell is as the script's table of refusals says, and the table is readable."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from export.verification.images import synthetic_images
from runtime.manifest import Precision

from .conftest import Exported


@pytest.fixture(scope="session")
def portability(repository: Path) -> ModuleType:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX is not installed")
    pytest.importorskip("openvino", reason="OpenVINO is not installed")
    spec = importlib.util.spec_from_file_location("portability", repository / "benchmarks" / "portability.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["portability"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_every_file_runs_in_both_cpu_readers_and_uses_known_names(
    portability: ModuleType, deployed: dict[Precision, Path]
) -> None:
    """The builds of the same files are in test_to_trt.py."""
    consumers = [portability.ORT, portability.OPENVINO, *portability.NAMES]
    cells = list(portability.matrix(deployed, consumers, synthetic_images()))
    assert len(cells) == len(deployed) * len(consumers)
    assert [cell for cell in cells if not cell.as_expected] == []
    agreement = {(c.variant, c.consumer): float(c.detail.split("%")[0]) for c in cells if "%" in c.detail}
    assert agreement["fp32", portability.OPENVINO] == 100
    assert agreement["fp16", portability.OPENVINO] > 95


@pytest.mark.slow
def test_the_whole_matrix(
    portability: ModuleType, exported: Exported, tmp_path: Path, deployed: dict[str, Path]
) -> None:
    images = deployed["fp16"].parent
    files = portability.make_files(exported.loaded, tmp_path, images)
    assert list(files) == list(portability.VARIANTS)
    cells = list(portability.matrix(files, portability.CONSUMERS, synthetic_images()))
    assert [cell for cell in cells if not cell.as_expected] == []


def test_the_table(portability: ModuleType) -> None:
    cells = [
        portability.Cell("fp32", portability.ORT, True, "100.0% of 400 rows as the float32 file's", 0.1),
        portability.Cell("fp32", "RTX 7.5", True, "built 17 MB in 3.1 s", 3.2),
        portability.Cell("bf16", portability.ORT, False, "no kernel for Conv(22)", 0.1),
        portability.Cell("bf16", "RTX 7.5", False, "cannot build", 0.1),
    ]
    assert all(cell.as_expected for cell in cells)
    assert not portability.Cell("fp32", "RTX 8.6", False, "cannot build", 0.1).as_expected
    assert not portability.Cell("bf16", "RTX 7.5", True, "built", 0.1).as_expected
    assert portability.markdown(cells).splitlines() == [
        "| | ONNX Runtime | RTX 7.5 |",
        "| --- | --- | --- |",
        "| fp32 | 100.0% | built 17 MB |",
        "| bf16 | refused | refused |",
        "",
        "- bf16: Turing has no bfloat16",
        "- bf16: no bfloat16 convolution on a CPU",
    ]
