"""benchmarks/soak.py, for a minute's fraction: what it watches doesn't grow, and a leak is seen."""

from __future__ import annotations

import importlib.util
import mmap
import os
import sys
import threading
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from runtime.detector import Detector

from ..support.fakes import RedBackend, write_red_onnx


@pytest.fixture(scope="module")
def soak(repository: Path) -> ModuleType:
    if not Path("/proc/self/statm").exists():
        pytest.skip("reads /proc")
    spec = importlib.util.spec_from_file_location("soak", repository / "benchmarks" / "soak.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def bad(tmp_path: Path) -> Path:
    path = tmp_path / "bad.jpg"
    path.write_bytes(b"\xff\xd8\xff\xe0")
    return path


def test_nothing_grows(soak: ModuleType, bad: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnx", reason="builds the test's graph")
    pytest.importorskip("onnxruntime", reason="runs it")
    paths = soak.made_images(tmp_path)
    with Detector(write_red_onnx(tmp_path / "red.onnx"), backend="cpu", threads=1) as detector:
        report = soak.soak(detector, paths, bad, images=2000, batch=4, every=50)
    assert report["errors"] == 40
    assert len(report["samples"]) == 40
    assert not soak.has_grown(report), report["growth"]
    assert report["after"]["threads"] < report["samples"][-1]["threads"]


def test_what_is_in_use_at_the_moment_is_no_growth(soak: ModuleType) -> None:
    calm = [{"images": n, "memory_mb": 50.0, "handles": 9.0, "threads": 6.0} for n in range(16)]
    busy = [{**s, "memory_mb": 90.0, "handles": 11.0} if n > 12 else s for n, s in enumerate(calm)]
    assert not soak.has_grown({"growth": soak.growth(busy)})
    for name, more in (("memory_mb", 9.0), ("handles", 1.0), ("threads", 3.0)):
        leak = [{**s, name: s[name] + more} if n > 9 else s for n, s in enumerate(calm)]
        assert soak.has_grown({"growth": soak.growth(leak)}), name


@pytest.mark.parametrize("kind", ["memory", "handles", "threads"])
def test_a_leak_is_seen(soak: ModuleType, bad: Path, tmp_path: Path, kind: str) -> None:
    kept: list[Any] = []
    ended = threading.Event()

    class Leaking(RedBackend):
        def infer(self, images, *arguments, **options):  # type: ignore[no-untyped-def]
            if kind == "memory":
                # Pages of its own: the heap may have room that earlier tests left, and then the process doesn't grow.
                kept.append(mmap.mmap(-1, 200_000))
                kept[-1].write(b"x" * 200_000)
            elif kind == "handles":
                kept.append(os.open(os.devnull, os.O_RDONLY))
            elif len(self.batches) % 20 == 0:
                kept.append(threading.Thread(target=ended.wait))
                kept[-1].start()
            return super().infer(images, *arguments, **options)

    try:
        report = soak.soak(Detector(Leaking()), soak.made_images(tmp_path, 8), bad, images=400, batch=2, every=20)
    finally:
        ended.set()
        for entry in kept:
            if isinstance(entry, int):
                os.close(entry)
    assert soak.has_grown(report), report["growth"]
    assert report["growth"]["memory_mb" if kind == "memory" else kind] > 0


def test_too_few_samples_are_no_proof(soak: ModuleType) -> None:
    with pytest.raises(Exception, match="3 samples are too few to tell growth"):
        soak.growth([{"images": 1, "memory_mb": 1.0}] * 3)
    assert "soak" not in sys.modules
