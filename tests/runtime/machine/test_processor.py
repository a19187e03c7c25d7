"""Abilities of processors, read from what systems print; the texts are abridged from real machines."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from runtime.machine import processor
from runtime.machine.processor import Processor, read_processor

ZEN2 = "processor : 0\nmodel name : AMD EPYC 7B12\nflags : fpu sse4_1 avx avx2 fma\n"
ZEN4 = "processor : 0\nmodel name : AMD EPYC 9B14\nflags : fpu avx2 avx512f avx512_bf16 avx512_vnni\n"
ALDER_LAKE = "processor : 0\nmodel name : 12th Gen Intel(R) Core(TM)\nflags : fpu avx2 avx_vnni\n"
SKYLAKE_X = "processor : 0\nmodel name : Intel(R) Xeon(R) Gold 6130\nflags : fpu avx2 avx512f avx512bw\n"
GRAVITON2 = "processor : 0\nFeatures : fp asimd evtstrm aes asimdhp cpuid asimdrdm lrcpc dcpop asimddp\n"
RASPBERRY_PI_4 = "processor : 0\nFeatures : fp asimd evtstrm crc32 cpuid\nModel : Raspberry Pi 4 Model B\n"


def _read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str, architecture: str) -> Processor:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(text)
    monkeypatch.setattr(processor.platform, "system", lambda: "Linux")
    monkeypatch.setattr(processor.platform, "machine", lambda: architecture)
    monkeypatch.setattr(processor.platform, "processor", lambda: "")
    monkeypatch.setattr(processor, "CPUINFO", cpuinfo)
    return read_processor()


def test_abilities_that_cannot_be_read_are_unknown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(processor.platform, "system", lambda: "Linux")
    monkeypatch.setattr(processor, "CPUINFO", tmp_path / "missing")
    assert read_processor().features == frozenset()
    found = _read(monkeypatch, tmp_path, "", "x86_64")
    assert found.sums_8_bit_products_exactly is None
    assert str(found) == "x86_64 (features unknown)"


def test_another_architecture_is_unknown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert _read(monkeypatch, tmp_path, "flags : rv64 v\n", "riscv64").sums_8_bit_products_exactly is None


@pytest.mark.parametrize(
    ("text", "architecture", "exact", "abilities"),
    [
        (ZEN2, "x86_64", False, ("AVX2",)),
        (ZEN4, "x86_64", True, ("AVX2", "AVX-512", "VNNI", "BF16")),
        (ALDER_LAKE, "x86_64", True, ("AVX2", "VNNI")),
        (SKYLAKE_X, "x86_64", False, ("AVX2", "AVX-512")),
        (GRAVITON2, "aarch64", True, ("NEON", "dot product")),
        (RASPBERRY_PI_4, "aarch64", False, ("NEON",)),
    ],
)
def test_linux(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    text: str,
    architecture: str,
    exact: bool,
    abilities: tuple[str, ...],
) -> None:
    found = _read(monkeypatch, tmp_path, text, architecture)
    assert found.sums_8_bit_products_exactly is exact
    assert found.abilities == abilities


def test_only_what_every_core_has_counts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Boards with cores of two kinds run a thread on either."""
    found = _read(monkeypatch, tmp_path, GRAVITON2 + RASPBERRY_PI_4, "aarch64")
    assert found.sums_8_bit_products_exactly is False


@pytest.mark.parametrize(
    ("text", "architecture", "exact"),
    [
        ("machdep.cpu.brand_string: Apple M1\nhw.optional.arm.FEAT_DotProd: 1\n", "arm64", True),
        ("machdep.cpu.brand_string: Intel(R) Core(TM) i7\nmachdep.cpu.leaf7_features: AVX2 BMI2\n", "x86_64", False),
    ],
)
def test_macos(monkeypatch: pytest.MonkeyPatch, text: str, architecture: str, exact: bool) -> None:
    monkeypatch.setattr(processor.platform, "system", lambda: "Darwin")
    monkeypatch.setattr(processor.platform, "machine", lambda: architecture)
    monkeypatch.setattr(
        processor.subprocess, "run", lambda *_, **__: subprocess.CompletedProcess([], 0, stdout=text, stderr="")
    )
    found = read_processor()
    assert found.sums_8_bit_products_exactly is exact
    assert found.name in text


def test_macos_without_sysctl_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise FileNotFoundError("sysctl")

    monkeypatch.setattr(processor.platform, "system", lambda: "Darwin")
    monkeypatch.setattr(processor.subprocess, "run", refuse)
    assert read_processor().sums_8_bit_products_exactly is None
