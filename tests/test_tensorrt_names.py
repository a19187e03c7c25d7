"""Every TensorRT name in our code exists in 10.16, 11.4 and TensorRT for RTX 1.7, or is used in a branch for one."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.tensorrt_api.conformance import ONLY_IN, problems
from benchmarks.tensorrt_api.lists import LISTS, load, load_all

LIBRARIES = load_all()
PACKAGES = ("export", "runtime", "benchmarks")


def sources(repository: Path) -> dict[str, str]:
    files = (file for package in PACKAGES for file in sorted((repository / package).rglob("*.py")))
    return {str(file.relative_to(repository)): file.read_text(encoding="utf-8") for file in files}


def test_the_lists_are_of_three_libraries() -> None:
    assert [library.label for library in LIBRARIES] == ["rtx 1.7.1.116", "tensorrt 10.16.1.11", "tensorrt 11.4.0.106"]
    assert all(len(library.members) > 150 for library in LIBRARIES)
    rtx, ten, eleven = LIBRARIES
    assert ten.has("BuilderFlag", "FP16")
    assert not eleven.has("BuilderFlag", "FP16")
    assert not rtx.has("BuilderFlag", "FP16")
    assert rtx.has("IBuilderConfig", "set_compute_capability")


def test_every_use_in_the_code_is_allowed_by_each_library(repository: Path) -> None:
    """Names and signatures. Modules in a folder `trt` are checked even if they don't name the library."""
    found = {
        name: lines
        for name, text in sources(repository).items()
        if (lines := problems(text, LIBRARIES, is_trt="trt" in Path(name).parts))
    }
    assert found == {}


def test_a_module_that_gets_its_objects_from_elsewhere_is_checked(repository: Path) -> None:
    slot = sources(repository)["runtime/backends/trt/slot.py"]
    assert "trt" not in slot.split()
    renamed = slot.replace("context.set_tensor_address", "context.set_tensor_adress")
    assert any("set_tensor_adress is not in rtx" in line for line in problems(renamed, LIBRARIES, is_trt=True))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("def f(trt, builder_config): builder_config.set_flag(trt.BuilderFlag.FP16)", "BuilderFlag.FP16 is not in rtx"),
        ("def f(trt): return 1 << int(trt.NetworkDefinitionCreationFlag.EXPLICIT_BATCH)", "EXPLICIT_BATCH is not in"),
        ("def f(trt, builder): return builder.platform_has_fast_fp16", "Builder.platform_has_fast_fp16 is not in"),
        ("def f(trt, anything): return anything.device_memory_size", "device_memory_size is a name of TensorRT's, but"),
        (
            "def f(self, trt): self._context.enqueue_v2()",
            "IExecutionContext.enqueue_v2 is not in rtx 1.7",
        ),
        ("import tensorrt as trt\nbuilder = trt.Bilder(1)", "Bilder is not in"),
        ("import tensorrt as trt\ntrt.get_nv_onnx_parser_versions()", "trt.get_nv_onnx_parser_versions is not in"),
        ("import tensorrt as trt\nb = trt.Builder(1)", "b holds a Builder; name it builder"),
        (
            "def f(trt, builder): c = builder.create_builder_config()",
            "c holds a IBuilderConfig; name it",
        ),
        ("def f(trt, engine):\n with engine.create_execution_context() as c: pass", "c holds a IExecutionContext"),
        ("def f(trt, builder): return builder.create_builder_config().int8_calibrator", "int8_calibrator is not in"),
        ("def f(trt, builder): return hasattr(builder, 'platform_has_tf32')", "hasattr on a TensorRT object"),
        ("def f(trt): return getattr(trt.BuilderFlag, 'FP16')", "getattr on a TensorRT object"),
        ("def f(trt, builder): g(builder)\ndef g(b): return b.reset()", "b of g is given a Builder"),
        ("import tensorrt", "import tensorrt under the name trt"),
        ("from tensorrt_rtx import Builder", "import tensorrt_rtx as trt, not names from it"),
        ("def f(trt, builder_config): builder_config.num_compute_capabilities = 1", "only in rtx; use it in an `if`"),
        (
            "def f(trt, builder, flavor):\n if flavor == 'tensorrt':\n  builder.platform_has_fast_fp16",
            "platform_has_fast_fp16 is not in",
        ),
    ],
)
def test_a_planted_name_is_found(source: str, message: str) -> None:
    found = problems(source, LIBRARIES)
    assert any(message in line for line in found), found


@pytest.mark.parametrize(
    "source",
    [
        "def f(trt, builder):\n"
        " network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))",
        "def f(trt, flavor, builder_config):\n if flavor == 'rtx':\n  builder_config.num_compute_capabilities = 1",
        "def name_gpus_rtx(trt, builder_config):\n builder_config.num_compute_capabilities = 1",
        "def f(trt): return trt.DataType.HALF.name, trt.__version__, trt.float32, trt.BuilderFlag.__members__",
        "def f(builder): return builder.platform_has_fast_fp16",  # nothing of TensorRT in sight
    ],
)
def test_what_is_allowed_is_not_reported(source: str) -> None:
    assert list(problems(source, LIBRARIES)) == []


def test_the_table_of_exceptions_names_what_really_differs() -> None:
    for (owner, member), (flavor, reason) in ONLY_IN.items():
        assert reason
        assert all(library.has(owner, member) == (library.flavor == flavor) for library in LIBRARIES), (owner, member)


@pytest.mark.parametrize(("module", "flavor"), [("tensorrt", "tensorrt"), ("tensorrt_rtx", "rtx")])
def test_the_installed_library_has_the_names_of_its_list(module: str, flavor: str, repository: Path) -> None:
    """Where one of the listed versions is installed, the list is what the script makes of it."""
    if importlib.util.find_spec(module) is None:
        pytest.skip(f"{module} is not installed")
    made = subprocess.run(
        [sys.executable, str(repository / "benchmarks" / "tensorrt_api" / "read_names.py"), module],
        capture_output=True,
        text=True,
    )
    if made.returncode:
        pytest.skip(f"{module} cannot be imported: {made.stderr.splitlines()[-1]}")
    version = json.loads(made.stdout)["version"]
    listed = [path for path, library in zip(LISTS, LIBRARIES, strict=True) if library.version == version]
    if not listed:
        pytest.skip(f"{module} {version} is not one of the listed versions")
    assert load(listed[0]).flavor == flavor
    found, expected = json.loads(made.stdout), json.loads(listed[0].read_text(encoding="utf-8"))
    assert found.pop("wheel").split()[1] == expected.pop("wheel").split()[1]  # it may be for another CUDA
    assert found == expected
