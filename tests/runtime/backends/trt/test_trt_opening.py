"""What is refused when an engine is opened, and what lies beside it."""

from __future__ import annotations

import builtins
from pathlib import Path

import pytest

pytest.importorskip("cuda.bindings.runtime", reason="the stand-in takes its enumerations from cuda-python")

from runtime.backends import BackendError, open_backend
from runtime.backends.engine_file import EngineError, Profile, json_path, read_description
from runtime.backends.trt.backend import TrtBackend
from runtime.backends.trt.engine import load
from runtime.cuda import CudaError, open_cuda

from ....support.engines import MANIFEST, SMALL, WIDE, assert_same, feed, write_standin_engine
from ....support.standin.install import StandIn, install
from ....support.standin.network import expected
from ....support.standin.trt_engine import engine_bytes
from ....support.trt_seams import ContextSeam, Seams, in_context

ALL = [[(1, 32, 32), (4, 64, 64), (8, 96, 96)], [(1, 64, 128), (2, 64, 192), (4, 128, 256)]]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"library_version": "10.12.0.36"}, r"built with TensorRT 10.12.0.36, but 10.16.1.11 is installed"),
        ({"platform": "windows-amd64"}, r"built for windows-amd64, but this is linux-x86_64"),
        (
            {"compute_capabilities": ("7.5", "9.0")},
            r"built for compute capability 7.5, 9.0, but Stand-in has 8.6",
        ),
    ],
)
def test_an_engine_for_another_place(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, stand_in: StandIn, changes: dict, message: str
) -> None:
    monkeypatch.setattr("platform.system", lambda: "Linux")
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    path = write_standin_engine(tmp_path, stand_in, **{"platform": "linux-x86_64", **changes})
    with pytest.raises(
        BackendError, match=rf"red.engine: {message}; build it again on this machine: python -m export.to_trt red.onnx$"
    ):
        open_backend(path)
    assert not stand_in.shared.alive, "it was deserialized"
    stand_in.check_end()


def test_a_version_compatible_engine_runs_in_later_versions(tmp_path: Path, stand_in: StandIn) -> None:
    """TensorRT 10.16.1 is installed. Only such an engine may bring code along."""
    for version in ("10.12.0.36", "10.16.1.11"):
        path = write_standin_engine(tmp_path, stand_in, library_version=version, version_compatible=True)
        TrtBackend(path).close()
    for version in ("10.16.1.12", "10.17.0.1", "11.0.0.1", "8.6.1.6"):
        path = write_standin_engine(tmp_path, stand_in, library_version=version, version_compatible=True)
        with pytest.raises(BackendError, match=rf"built with TensorRT {version}, but 10\.16\.1\.11 is installed"):
            TrtBackend(path)
    path = write_standin_engine(tmp_path, stand_in, data=engine_bytes(ALL, host_code=True))
    with pytest.raises(BackendError, match="engine_host_code_allowed is not set"):
        TrtBackend(path)
    stand_in.check_end()


def test_an_altered_engine_is_not_deserialized(tmp_path: Path, stand_in: StandIn) -> None:
    path = write_standin_engine(tmp_path, stand_in)
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(EngineError, match=r"its SHA-256 is not the one in red\.engine\.json"):
        open_backend(path)
    json_path(path).unlink()
    with pytest.raises(EngineError, match="cannot read its description"):
        open_backend(path)
    assert stand_in.driver.calls == []


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"not an engine", r"cannot deserialize it \(Error Code 1: Serialization \(magicTag .*\)\); if the device's"),
        (engine_bytes(ALL, drop="nms_exact"), "output 'nms_exact' is missing, expected int32 of rank 2"),
        (
            engine_bytes(ALL, dtype={"detection_boxes": "HALF"}),
            "output 'detection_boxes' is output float16 of rank 3, expected float32 of rank 3",
        ),
        (
            engine_bytes(ALL, dtype={"images": "FLOAT"}),
            "input 'images' is input float32 of rank 4, expected uint8 of rank 4",
        ),
        (engine_bytes(ALL, host="image_sizes"), "tensor 'image_sizes' must lie in host memory"),
        (engine_bytes(ALL[:1]), r"its profiles are .*, its description says"),
    ],
)
def test_an_engine_that_is_not_ours(tmp_path: Path, stand_in: StandIn, data: bytes, message: str) -> None:
    path = write_standin_engine(tmp_path, stand_in, data=data)
    with pytest.raises(BackendError, match=message) as caught:
        open_backend(path)
    assert str(caught.value).endswith("build it again: python -m export.to_trt red.onnx")
    assert "\n" not in str(caught.value)
    del caught
    stand_in.check_end()


def test_shapes_and_profiles(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, stand_in: StandIn) -> None:
    chosen: list[int] = []

    def note(context: ContextSeam, profile: int, stream: int) -> bool:
        chosen.append(profile)
        return ContextSeam.set_optimization_profile_async(context, profile, stream)

    in_context(set_optimization_profile_async=note)(Seams(monkeypatch, stand_in))
    best = Profile((1, 32, 32), (1, 64, 64), (8, 128, 256))
    with TrtBackend(write_standin_engine(tmp_path, stand_in, (best, SMALL, WIDE))) as backend:
        for shape, profile in (((1, 64, 64), 0), ((2, 64, 64), 1), ((2, 64, 192), 2), ((8, 64, 256), 0)):
            assert_same(backend.infer(*feed(*shape)), expected(*feed(*shape)))
            assert chosen.pop() == profile, shape
    with TrtBackend(write_standin_engine(tmp_path, stand_in)) as backend:
        with pytest.raises(
            BackendError,
            match=r"batch 8 of 192×64 is in none of the engine's profiles \(0: batch 1–8, 32×32 to 96×96; "
            r"1: batch 1–4, 128×64 to 256×128\); build it with --batch and --shapes that include it: python -m export",
        ):
            backend.infer(*feed(8, 64, 192))
        with pytest.raises(BackendError, match="batch 9, but the graph was exported for 1 to 8"):
            backend.infer(*feed(9, 64, 64))
    stand_in.check_end()


def test_replacing_the_file_changes_nothing(tmp_path: Path, stand_in: StandIn) -> None:
    path = write_standin_engine(tmp_path, stand_in)
    with TrtBackend(path) as backend:
        path.write_bytes(b"another model")
        json_path(path).unlink()
        for shape in ((1, 64, 64), (2, 64, 192)):
            assert_same(backend.infer(*feed(*shape)), expected(*feed(*shape)))
        assert backend.manifest == MANIFEST
    stand_in.check_end()


@pytest.mark.parametrize("options", [{"slots": 0}, {"most_shapes": 0}])
def test_options_that_make_no_sense(tmp_path: Path, stand_in: StandIn, options: dict) -> None:
    with pytest.raises(BackendError, match="expected at least 1 of each"):
        TrtBackend(write_standin_engine(tmp_path, stand_in), **options)


def test_the_real_library_refuses_garbage(tmp_path: Path, stand_in: StandIn) -> None:
    """TensorRT for RTX as it is installed: it logs and returns None, and needs no GPU to do so."""
    trt = pytest.importorskip("tensorrt_rtx", reason="the library itself")
    described = read_description(write_standin_engine(tmp_path, stand_in, flavor="rtx"))
    with pytest.raises(
        BackendError, match=r"x.engine: TensorRT cannot deserialize it \(.*magicTag.*\); if the device's"
    ):
        load(trt, "x.engine", b"garbage" * 100, described)


# RTX's compiled kernels -----------------------------------------------------------------------------------------------


def test_kernels_are_kept_between_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def compiled(*shapes: tuple[int, int, int]) -> list[str]:
        """The shapes whose kernels a run over these had to compile."""
        stand_in = install(monkeypatch, names="rtx-1.7.1")
        with TrtBackend(path) as backend:
            for shape in shapes:
                assert_same(backend.infer(*feed(*shape)), expected(*feed(*shape)))
        stand_in.check_end()
        return stand_in.shared.compiled

    path = write_standin_engine(tmp_path, install(monkeypatch, names="rtx-1.7.1"))
    cache = tmp_path / "red.engine.cache"
    assert compiled((1, 64, 64), (2, 64, 64)) == ["(1, 64, 64, 3)", "(2, 64, 64, 3)"]
    assert compiled((1, 64, 64), (4, 64, 64)) == ["(4, 64, 64, 3)"]
    kept = cache.read_bytes()
    for damaged in (b"", kept[:-1], kept[:10], b"x" + kept[1:]):
        cache.write_bytes(damaged)
        assert compiled((1, 64, 64)) == ["(1, 64, 64, 3)"]
    assert compiled((1, 64, 64)) == []
    cache.unlink()
    cache.mkdir()  # it cannot be written: no error
    assert compiled((1, 64, 64)) == ["(1, 64, 64, 3)"]


def test_a_cache_of_kernels_that_the_library_does_not_take(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without it, each start would compile for minutes, and nothing would say why."""
    stand_in = install(monkeypatch, names="rtx-1.7.1")
    monkeypatch.setattr(stand_in.shared.module.IRuntimeConfig, "set_runtime_cache", lambda *_: False)
    with pytest.raises(BackendError, match=r"could not use a cache of compiled kernels: it gives no reason$"):
        TrtBackend(write_standin_engine(tmp_path, stand_in))
    stand_in.check_end()


def test_another_engines_kernels_are_not_loaded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from runtime.backends.trt.rtx import read_kernels, write_kernels

    write_kernels(tmp_path / "x.cache", "ab" * 32, b"kernels")
    assert read_kernels(tmp_path / "x.cache", "ab" * 32) == b"kernels"
    assert read_kernels(tmp_path / "x.cache", "cd" * 32) == b""
    assert read_kernels(tmp_path / "none.cache", "ab" * 32) == b""


# Libraries and devices that are not there -----------------------------------------------------------------------------


@pytest.mark.parametrize("binding", ["cuda-python", "pycuda"])
def test_devices(monkeypatch: pytest.MonkeyPatch, binding: str) -> None:
    stand_in = install(monkeypatch, binding)  # type: ignore[arg-type]
    device = open_cuda(1, binding).device  # type: ignore[arg-type]
    assert (device.index, device.name, device.compute_capability) == (1, "Stand-in", "8.6")
    assert (device.memory_bytes, device.clock_mhz) == (1 << 30, 1500)
    for index in (2, -1):
        with pytest.raises(CudaError, match=f"CUDA device {index} does not exist; this machine has devices 0 to 1"):
            open_cuda(index, binding)  # type: ignore[arg-type]
    stand_in.driver.devices = 1
    with pytest.raises(CudaError, match="this machine has one device, number 0"):
        open_cuda(1, binding)  # type: ignore[arg-type]
    stand_in.driver.devices = 0
    with pytest.raises(CudaError, match=r"CUDA finds no usable device \(.*no CUDA.*install NVIDIA's driver"):
        open_cuda(0, binding)  # type: ignore[arg-type]


def test_a_driver_that_is_too_old_or_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in = install(monkeypatch, "cuda-python")
    stand_in.driver.cuda_version = 12040
    with pytest.raises(CudaError) as caught:
        open_cuda(0)
    assert str(caught.value) == (
        "NVIDIA's driver is for CUDA 12.4 and too old for cuda-python, which is for CUDA 13: update the driver to 580 "
        "or newer, or take the libraries of CUDA 12: pip install 'atss-toolkit[cuda12]'"
    )
    stand_in.driver.cuda_version = 0
    with pytest.raises(CudaError, match=r"finds no usable device \(no driver is loaded\); install NVIDIA's driver"):
        open_cuda(0)


def without(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    original = builtins.__import__

    def blocked(name: str, *rest: object, **options: object) -> object:
        if name.split(".")[0] in names:
            raise ModuleNotFoundError(f"No module named {name!r}")
        return original(name, *rest, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(builtins, "__import__", blocked)


def test_the_binding_that_is_installed_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, "cuda-python")
    install(monkeypatch, "pycuda")
    assert open_cuda().binding == "cuda-python"
    without(monkeypatch, "cuda")
    assert open_cuda().binding == "pycuda"
    with pytest.raises(CudaError, match=r"cuda-python cannot be imported .*pip install 'cuda-python>=12.6'"):
        open_cuda(binding="cuda-python")
    without(monkeypatch, "cuda", "pycuda")
    with pytest.raises(CudaError, match="cuda-python cannot be imported"):
        open_cuda()
    with pytest.raises(CudaError, match=r"pycuda cannot be imported .*needs the CUDA toolkit"):
        open_cuda(binding="pycuda")
    with pytest.raises(CudaError, match="binding 'cupy', expected 'cuda-python' or 'pycuda'"):
        open_cuda(binding="cupy")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("names", "module", "message"),
    [
        ("tensorrt-11.4.0", "tensorrt", r"tensorrt cannot be imported .*'atss-toolkit\[gpu\]'"),
        ("rtx-1.7.1", "tensorrt_rtx", r"tensorrt-rtx cannot be imported .*'atss-toolkit\[rtx\]'"),
    ],
)
def test_without_the_library(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, names: str, module: str, message: str
) -> None:
    path = write_standin_engine(tmp_path, install(monkeypatch, names=names))
    without(monkeypatch, module)
    with pytest.raises(BackendError, match=message):
        open_backend(path)


def test_the_names_that_we_use_are_cuda_pythons(repository: Path) -> None:
    """Every attribute of `cudart` in the source exists in the installed module (not in the stand-in's copy of it)."""
    import ast

    import cuda.bindings.runtime as real

    tree = ast.parse((repository / "runtime/cuda/cuda_python.py").read_text(encoding="utf-8"))
    used = {
        ast.unparse(node).removeprefix("self._").removeprefix("cudart.")
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and ast.unparse(node).removeprefix("self._").startswith("cudart.")
    }
    assert len(used) > 30
    for name in used:
        holder: object = real
        for part in name.split("."):
            assert hasattr(holder, part), name
            holder = getattr(holder, part)


def test_an_int_stands_for_a_handle() -> None:
    """What `address` does with cuda-python's handles, and that its structure of properties has our fields."""
    import cuda.bindings.runtime as real

    assert int(real.cudaStream_t(4711)) == 4711
    properties = real.cudaDeviceProp()
    assert {"name", "major", "minor", "totalGlobalMem"} <= set(dir(properties))
    assert isinstance(properties.name, bytes)
