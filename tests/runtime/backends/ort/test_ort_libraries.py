"""What ONNX Runtime's GPU build is linked to is loaded from wheels, and what is missing is one line."""

from __future__ import annotations

import inspect
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Protocol

import pytest

pytest.importorskip("onnx", reason="builds the test's graph")
pytest.importorskip("onnxruntime", reason="the backend under test")

import onnxruntime as real

from runtime.backends import BackendError, open_backend
from runtime.backends.ort import libraries as ort_libraries
from runtime.backends.ort import session as ort_session
from runtime.backends.ort.libraries import preload, preload_tensorrt
from runtime.machine.cuda_libraries import Library
from runtime.machine.gpus import Gpus

from ....support.ort_fake import CUDA, TENSORRT, FakeOrt

ORT_13, TORCH_12 = Library("onnxruntime-gpu", "1.99", 13), Library("torch", "2.10.0", 12)
CUBLAS, CUDNN = "libcublasLt.so.13", "libcudnn.so.9"


class Use(Protocol):
    def __call__(self, fake: FakeOrt, libraries: Sequence[Library] = (), driver: str | None = "") -> FakeOrt: ...


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Use:
    """Puts a stand-in, the installed libraries and the driver's version into place."""

    def install(fake: FakeOrt, libraries: Sequence[Library] = (ORT_13,), driver: str | None = "580.1") -> FakeOrt:
        monkeypatch.setitem(sys.modules, "onnxruntime", fake)  # type: ignore[arg-type]
        monkeypatch.setattr(ort_libraries, "is_loadable", lambda name: name not in fake.missing)
        monkeypatch.setattr(ort_libraries, "cuda_libraries", lambda: list(libraries))
        monkeypatch.setattr(ort_libraries, "list_gpus", lambda: Gpus(driver, (), None))
        return fake

    return install


def opened(model: Path, backend: str = "cuda") -> str:
    """What the error of opening a backend says, without the file's name."""
    with pytest.raises(BackendError) as caught:
        open_backend(model, backend=backend)
    text = str(caught.value)
    assert "\n" not in text
    return text.removeprefix(f"{model}: ")


def test_a_build_for_cpus_loads_nothing(use: Use) -> None:
    assert preload(use(FakeOrt(available=("CPUExecutionProvider",)))) is None, "the stand-in would have failed"
    if not real.cuda_version:
        assert preload(real) is None


@pytest.mark.parametrize("backend", ["cuda", "ort-tensorrt"])
def test_libraries_are_loaded_before_a_session(
    model: Path, monkeypatch: pytest.MonkeyPatch, use: Use, backend: str
) -> None:
    fake = use(FakeOrt())
    open_backend(model, backend=backend)
    assert fake.has_loaded
    use(FakeOrt())
    monkeypatch.setattr(ort_session, "load_libraries", lambda *_: None)
    assert "started before its libraries were loaded" in opened(model, backend), "the stand-in tells where they are not"


def test_it_is_quiet_where_all_is_found(model: Path, use: Use, capfd: pytest.CaptureFixture) -> None:
    fake = use(FakeOrt())
    assert preload(fake) is None
    open_backend(model, backend="cuda")
    assert capfd.readouterr() == ("", "")


def test_libraries_that_are_missing(model: Path, use: Use, capfd: pytest.CaptureFixture) -> None:
    """What onnxruntime-gpu does without CUDA: the provider is on the list, the session runs on the CPU."""
    use(FakeOrt(missing=(CUBLAS, CUBLAS, "libcurand.so.10"), broken=(CUDA,), silent=True))
    assert opened(model) == (
        "ONNX Runtime could not start CUDAExecutionProvider and fell back to CPUExecutionProvider: onnxruntime-gpu "
        "1.99, built for CUDA 13, does not find libcublasLt.so.13, libcurand.so.10: pip install "
        "'onnxruntime-gpu[cuda,cudnn]'; or allow it with --allow-fallback"
    )
    assert capfd.readouterr() == ("", ""), "nothing but the error, wherever it is printed"
    # A provider that starts all the same has found them where this system keeps them.
    use(FakeOrt(missing=(CUBLAS,)))
    assert "CUDAExecutionProvider" in open_backend(model, backend="cuda").description


@pytest.mark.skipif(sys.platform != "linux", reason="looked for on Linux alone")
def test_cudnn_which_the_library_passes_over(use: Use, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = use(FakeOrt(missing=()))
    monkeypatch.setattr(ort_libraries, "is_loadable", lambda name: name != CUDNN)
    line = preload(fake)
    assert line is not None
    assert line.endswith(f"does not find {CUDNN}: pip install 'onnxruntime-gpu[cuda,cudnn]'")
    monkeypatch.undo()
    assert ort_libraries.is_loadable("libc.so.6")
    assert not ort_libraries.is_loadable("libno_such_library.so.9")


def test_libraries_of_another_major(model: Path, use: Use) -> None:
    use(FakeOrt(missing=(CUBLAS,), broken=(CUDA,), silent=True), (ORT_13, TORCH_12))
    assert (
        "libraries of different CUDA majors are installed (onnxruntime-gpu 1.99 for CUDA 13; torch 2.10.0 for CUDA "
        "12): pip install 'atss-toolkit[cuda13]'; or allow"
    ) in opened(model)


def test_no_driver(model: Path, use: Use) -> None:
    use(FakeOrt(broken=(CUDA,), silent=True), driver=None)
    assert (
        "no NVIDIA driver was found, which onnxruntime-gpu 1.99 (CUDA 13) needs: install the driver, 580 or newer"
    ) in opened(model)


def test_a_driver_that_is_too_old(model: Path, use: Use) -> None:
    use(FakeOrt(broken=(CUDA,)), driver="550.54.14")
    assert opened(model) == (
        "CUDAExecutionProvider did not start (CUDAExecutionProvider: CUDA failure 35: driver is insufficient); "
        "NVIDIA's driver 550.54.14 is too old for onnxruntime-gpu 1.99, built for CUDA 13: update the driver to 580 or "
        "newer, or take the libraries of CUDA 12, which it fits: pip install 'atss-toolkit[cuda12]'; or choose another "
        "--backend"
    )


def test_a_driver_that_cannot_be_asked(model: Path, use: Use, monkeypatch: pytest.MonkeyPatch) -> None:
    use(FakeOrt(broken=(CUDA,), silent=True))
    missing = Gpus(None, (), "nvidia-ml-py cannot be imported (no such module): pip install nvidia-ml-py")
    monkeypatch.setattr(ort_libraries, "list_gpus", lambda: missing)
    monkeypatch.setattr("platform.system", lambda: "Windows")
    said = opened(model)
    assert "no NVIDIA driver was found" not in said
    assert f"NVIDIA's driver cannot be checked: {missing.problem}" in said


def test_nothing_of_that(model: Path, use: Use) -> None:
    use(FakeOrt(broken=(CUDA,), silent=True))
    assert (
        "repair the driver or the CUDA libraries that its log above names (python -m runtime.doctor tells more)"
        in opened(model)
    )


def test_a_gpu_without_memory(model: Path, use: Use) -> None:
    fake = use(FakeOrt())
    fake.is_full = True
    assert opened(model) == (
        "the memory of GPU 0 is full (CUDA failure 2: out of memory ; GPU=0 ; expr=cudaMalloc); end what else runs "
        "there (nvidia-smi lists it), or name another GPU with --device"
    )


def test_libraries_that_do_not_load(use: Use, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = use(FakeOrt())

    def fail() -> None:
        raise RuntimeError("Invalid parameter of directory\nsecond line")

    monkeypatch.setattr(fake, "preload_dlls", fail)
    assert preload(fake) == (
        "onnxruntime-gpu 1.99, built for CUDA 13, could not load CUDA from wheels (Invalid parameter of directory): "
        "pip install 'onnxruntime-gpu[cuda,cudnn]'"
    )
    before = SimpleNamespace(__version__="1.20.2", cuda_version="12.4")  # had no preload_dlls
    assert preload(before) == (
        "onnxruntime-gpu 1.20.2, built for CUDA 12, can't load CUDA from wheels, 1.21 and later can: pip install "
        "'onnxruntime-gpu[cuda,cudnn]>=1.21'"
    )


def test_wheels_in_other_site_packages_are_loaded_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As with a virtual environment over the system's packages: `preload_dlls` looks beside ONNX Runtime alone."""
    fake, own, system = FakeOrt(cuda="13.0"), tmp_path / "own", tmp_path / "system"
    for folder in (own / "nvidia/cufft/lib", system / "nvidia/cu13/lib", system / "nvidia/cudnn/lib"):
        folder.mkdir(parents=True)
    (own / "onnxruntime").mkdir()
    fake.__file__ = str(own / "onnxruntime/__init__.py")  # type: ignore[attr-defined]
    monkeypatch.setattr(sys, "path", [str(own), str(system)])
    monkeypatch.delitem(sys.modules, "nvidia", raising=False)
    given: list[str | None] = []

    def record(directory: str | None = None) -> None:
        given.append(directory)
        if directory is not None:  # one folder lacks what another has
            print("Failed to load libcublas.so.13: libcublas.so.13: cannot open shared object file")

    monkeypatch.setattr(fake, "preload_dlls", record)
    monkeypatch.setattr(ort_libraries, "is_loadable", lambda name: True)
    assert preload(fake) is None
    assert given == [str(system / "nvidia/cu13/lib"), str(system / "nvidia/cudnn/lib"), None]


# TensorRT for ONNX Runtime's provider ---------------------------------------------------------------------------------


def with_provider(fake: FakeOrt, folder: Path, content: bytes) -> FakeOrt:
    (folder / "capi").mkdir()
    (folder / "capi/libonnxruntime_providers_tensorrt.so").write_bytes(content)
    fake.__file__ = str(folder / "__init__.py")  # type: ignore[attr-defined]
    return fake


@pytest.mark.parametrize(
    ("content", "version", "problem"),
    [
        (b"\x7fELF\0libnvinfer.so.10\0libnvonnxparser.so.10\0", "10.16.1.11", None),
        (b"\x7fELF\0nvinfer_10.dll\0", "10.12", None),
        (b"\x7fELF, which names none", "11.4.0", None),
        (
            b"\x7fELF\0libnvinfer.so.10\0",
            "11.4.0",
            "onnxruntime-gpu 1.99 is linked to TensorRT 10, but 11.4.0 is installed: pip install "
            "'tensorrt-cu13>=10,<11' (its engines are then built again)",
        ),
    ],
)
def test_tensorrt_of_another_major(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, use: Use, content: bytes, version: str, problem: str | None
) -> None:
    fake = with_provider(use(FakeOrt()), tmp_path, content)
    monkeypatch.setitem(sys.modules, "tensorrt", SimpleNamespace(__version__=version))  # type: ignore[arg-type]
    assert preload_tensorrt(fake) == problem


def test_tensorrt_that_is_missing(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, use: Use) -> None:
    fake = FakeOrt(broken=(TENSORRT,), silent=True)
    with_provider(use(fake), tmp_path, b"\x7fELF\0libnvinfer.so.10\0")
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    text = opened(model, "ort-tensorrt")
    assert "ONNX Runtime's provider needs TensorRT 10, which cannot be imported (" in text
    assert "): pip install 'tensorrt-cu13>=10,<11'; or allow it" in text


# The real library -----------------------------------------------------------------------------------------------------


def test_the_stand_in_has_the_real_signature() -> None:
    if not hasattr(real, "preload_dlls"):
        pytest.skip("ONNX Runtime before 1.21")
    ours, theirs = inspect.signature(FakeOrt().preload_dlls), inspect.signature(real.preload_dlls)
    assert [(p.name, p.default) for p in ours.parameters.values()] == [
        (p.name, p.default) for p in theirs.parameters.values()
    ]
    assert isinstance(real.cuda_version, str)
    assert callable(real.set_default_logger_severity)


ASK = """
import onnxruntime
from runtime.backends.ort.libraries import preload
onnxruntime.cuda_version = "99.1"
print(preload(onnxruntime))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="names of libraries as Linux has them")
def test_what_the_real_library_prints_is_understood(repository: Path) -> None:
    """Its own search, made to look for a CUDA that isn't there; the code is the same in the build for CPUs."""
    if not hasattr(real, "preload_dlls"):
        pytest.skip("ONNX Runtime before 1.21")
    done = subprocess.run([sys.executable, "-c", ASK], cwd=repository, capture_output=True, text=True, check=False)
    assert done.stderr == ""
    (line,) = done.stdout.splitlines()
    assert "built for CUDA 99, does not find libcublasLt.so." in line
    assert line.endswith(": pip install 'onnxruntime-gpu[cuda,cudnn]'")
