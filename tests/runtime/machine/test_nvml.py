"""NVML on a strict stand-in, and the stand-in against the real binding where that is installed."""

from __future__ import annotations

import ast
import inspect
import sys
from pathlib import Path

import pytest

from runtime.cuda import pci_bus_id
from runtime.machine.nvml import THROTTLING, NvmlError, open_nvml

from ...support.nvml import CONSTANTS, ERRORS, FakeGpu, FakeNvml
from ...support.standin.install import install

FIRST = FakeGpu(name="NVIDIA RTX A4000", pci_bus_id="00000000:40:00.0", uuid="GPU-1111aaaa")
SECOND = FakeGpu(name="NVIDIA L4", pci_bus_id="00000000:41:00.0", uuid="GPU-2222bbbb")


def use(monkeypatch: pytest.MonkeyPatch, fake: FakeNvml | None) -> FakeNvml | None:
    monkeypatch.setitem(sys.modules, "pynvml", fake)  # type: ignore[arg-type]
    return fake


def unknown(device: int) -> None:
    """CUDA that knows no bus id."""


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, None)
    with (
        pytest.raises(NvmlError, match=r"nvidia-ml-py cannot be imported \(.*\): pip install nvidia-ml-py$"),
        open_nvml(),
    ):
        pass


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ("LIBRARY_NOT_FOUND", "NVML, which comes with NVIDIA's driver, was not found"),
        ("DRIVER_NOT_LOADED", "NVML failed: Driver Not Loaded"),
        ("LIB_RM_VERSION_MISMATCH", "NVML failed: Lib Rm Version Mismatch"),
    ],
)
def test_a_library_that_does_not_start(monkeypatch: pytest.MonkeyPatch, broken: str, message: str) -> None:
    use(monkeypatch, FakeNvml(broken=broken))
    with pytest.raises(NvmlError) as caught, open_nvml():
        pass
    assert str(caught.value) == message


def test_the_library_is_shut_down(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeNvml()
    use(monkeypatch, fake)
    with open_nvml() as nvml, open_nvml():
        assert (nvml.driver, nvml.gpus(), fake.users) == ("580.65.06", [], 2)
    assert fake.users == 0
    with pytest.raises(NvmlError, match="NVML failed: Uninitialized"):
        nvml.gpus()


def test_what_a_gpu_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, FakeNvml([FakeGpu(reasons=(0x24,))]))
    with open_nvml() as nvml:
        (gpu,) = nvml.gpus()
        assert (gpu.name, gpu.uuid, gpu.pci_bus_id) == ("NVIDIA L4", "GPU-8f2c1d5e", "00000000:01:00.0")
        assert (gpu.compute_capability, gpu.memory_mib) == ("8.9", (22500, 100, 23034))
        assert (gpu.clock_mhz, gpu.clock_max_mhz, gpu.temperature_c, gpu.power_w) == (2040, 2040, 61, 71.2)
        assert (gpu.memory_clock_mhz, gpu.busy_percent) == (6251, 97)
        assert gpu.throttling == ("power cap", "thermal slowdown (software)")


def test_a_driver_that_is_older_than_some_functions(monkeypatch: pytest.MonkeyPatch) -> None:
    old = ("nvmlDeviceGetMemoryInfo_v2", "nvmlDeviceGetCurrentClocksEventReasons")
    use(monkeypatch, FakeNvml([FakeGpu(reasons=(0x08,))], "470.256.02", old=old))
    with open_nvml() as nvml:
        (gpu,) = nvml.gpus()
        assert gpu.memory_mib == (22500, 534, 23034), "what is reserved counts as used there"
        assert gpu.throttling == ("hardware slowdown",)


def test_a_gpu_that_reports_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    names = [name for name in dir(FakeNvml) if name.startswith("nvmlDeviceGet") and "Handle" not in name]
    use(monkeypatch, FakeNvml([FakeGpu(lacks=tuple(names))]))
    with open_nvml() as nvml:
        (gpu,) = nvml.gpus()
        assert (gpu.name, gpu.uuid, gpu.throttling) == ("unknown", "", ())
        for value in (gpu.pci_bus_id, gpu.compute_capability, gpu.memory_mib, gpu.clock_mhz, gpu.clock_max_mhz):
            assert value is None
        assert (gpu.temperature_c, gpu.power_w) == (None, None)


@pytest.mark.parametrize("bits", [0x1, 0x2, 0x10, 0x100, 0x0])  # idle, clocks set by the user, sync boost, display
def test_what_is_no_throttling(monkeypatch: pytest.MonkeyPatch, bits: int) -> None:
    use(monkeypatch, FakeNvml([FakeGpu(reasons=(bits,))]))
    with open_nvml() as nvml:
        assert nvml.gpus()[0].throttling == ()


# Which GPU CUDA means -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("binding", ["cuda-python", "pycuda"])
def test_cuda_s_order_is_not_nvml_s(monkeypatch: pytest.MonkeyPatch, binding: str) -> None:
    """CUDA's device 0 is the stand-in's faster one, which lies later on the bus."""
    pytest.importorskip("cuda.bindings.runtime", reason="the stand-in takes its enumerations from cuda-python")
    if binding == "pycuda":
        monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", None)
    install(monkeypatch, binding)  # type: ignore[arg-type]
    use(monkeypatch, FakeNvml([FIRST, SECOND]))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert [pci_bus_id(0), pci_bus_id(1), pci_bus_id(2)] == ["0000:41:00.0", "0000:40:00.0", None]
    with open_nvml() as nvml:
        assert [gpu.name for gpu in nvml.gpus()] == [FIRST.name, SECOND.name]
        assert [nvml.gpu_of_cuda(device, pci_bus_id).name for device in (0, 1)] == [SECOND.name, FIRST.name]


def test_a_bus_id_that_nvml_does_not_know(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, FakeNvml([FIRST, SECOND]))
    with open_nvml() as nvml, pytest.raises(NvmlError, match="NVML failed: Not Found"):
        nvml.gpu_of_cuda(0, lambda device: "0000:99:00.0")


def test_without_cuda_s_word(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, FakeNvml([FIRST, SECOND]))
    with open_nvml() as nvml:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        assert [nvml.gpu_of_cuda(device, unknown).name for device in (0, 1)] == [FIRST.name, SECOND.name]
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1, GPU-1111")
        assert [nvml.gpu_of_cuda(device, unknown).name for device in (0, 1)] == [SECOND.name, FIRST.name]
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-3333")
        for device in (0, 2):
            with pytest.raises(NvmlError, match="NVML lists no GPU "):
                nvml.gpu_of_cuda(device, unknown)


def test_of_a_single_gpu_cuda_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading CUDA would count to the memory of what is measured."""
    use(monkeypatch, FakeNvml([FIRST]))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    with open_nvml() as nvml:
        assert nvml.gpu_of_cuda(0, lambda device: pytest.fail("CUDA was asked")).name == FIRST.name


def test_without_cuda_there_is_no_bus_id(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", None)
    monkeypatch.setitem(sys.modules, "pycuda.driver", None)
    assert pci_bus_id(0) is None


# The real binding -----------------------------------------------------------------------------------------------------


def test_the_stand_in_is_like_the_real_binding() -> None:
    real = pytest.importorskip("pynvml", reason="nvidia-ml-py is not installed")
    for name, value in (ERRORS | CONSTANTS).items():
        assert getattr(real, name) == value, name
    for name, function in inspect.getmembers(FakeNvml, inspect.isfunction):
        if name.startswith("nvml"):
            _, *own = inspect.signature(function).parameters.values()
            theirs = inspect.signature(getattr(real, name)).parameters.values()
            assert [(p.name, p.default) for p in own] == [(p.name, p.default) for p in theirs], name
    assert issubclass(real.NVMLError, Exception)
    assert real.NVMLError(12).value == real.NVML_ERROR_LIBRARY_NOT_FOUND
    assert isinstance(real.nvmlPciInfo_t().busId, str)


def test_the_reasons_are_the_real_binding_s() -> None:
    real = pytest.importorskip("pynvml", reason="nvidia-ml-py is not installed")
    names = ("SwPowerCap", "HwSlowdown", "SwThermalSlowdown", "HwThermalSlowdown", "HwPowerBrakeSlowdown")
    for kind in ("Event", "Throttle"):
        assert list(THROTTLING) == [getattr(real, f"nvmlClocks{kind}Reason{name}") for name in names]


def test_every_name_that_we_use_is_in_the_stand_in(repository: Path) -> None:
    """So that the comparison with the real binding covers all of them."""
    tree = ast.parse((repository / "runtime/machine/nvml.py").read_text(encoding="utf-8"))
    used = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and _is_name(node.value)}
    used |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and _is_name(node.attr)}
    assert len(used) > 15
    assert [name for name in used if not hasattr(FakeNvml(), name)] == []


def _is_name(value: object) -> bool:
    return isinstance(value, str) and value.startswith(("nvml", "NVML_")) and value.isidentifier()


def test_the_real_library_on_a_machine_without_a_driver() -> None:
    real = pytest.importorskip("pynvml", reason="nvidia-ml-py is not installed")
    try:
        real.nvmlInit()
    except real.NVMLError_LibraryNotFound:
        with pytest.raises(NvmlError, match="was not found"):
            open_nvml().__enter__()
    else:
        real.nvmlShutdown()
        pytest.skip("there is a driver")
