"""The TensorRT backend where memory runs out, and on another device, on the stand-in for a GPU."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

pytest.importorskip("cuda.bindings.runtime", reason="the stand-in takes its enumerations from cuda-python")

from runtime.backends import BatchTooLarge
from runtime.backends.trt.backend import TrtBackend
from runtime.cuda import CudaError

from ....support.engines import assert_same, feed, write_standin_engine
from ....support.standin.install import Binding, StandIn, install
from ....support.standin.network import expected

BINDINGS = ("cuda-python", "pycuda")


@pytest.mark.parametrize("binding", BINDINGS)
def test_out_of_memory_says_which_batch_fits(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, binding: Binding) -> None:
    stand_in = install(monkeypatch, binding)
    stand_in.driver.memory = 100_000  # batch 8 of 64×64 wants 230 kB, batch 2 58 kB
    with TrtBackend(write_standin_engine(tmp_path, stand_in), slots=1, binding=binding) as backend:
        backend.infer(*feed(1, 64, 64))
        message = r"out of memory: batch 8 of 64×64 needs 0.2 MiB per slot, 0.1 MiB are free; batch 2 fits$"
        with pytest.raises(BatchTooLarge, match=message) as caught:
            backend.infer(*feed(8, 64, 64))
        assert caught.value.fits == 2
        assert_same(backend.infer(*feed(2, 64, 64)), expected(*feed(2, 64, 64)))
        with pytest.raises(BatchTooLarge, match="no smaller batch of the engine's range fits; use a smaller") as caught:
            backend.infer(*feed(1, 128, 256))
        assert caught.value.fits is None
    del caught  # its traceback holds the engine
    stand_in.check_end()


@pytest.mark.parametrize("binding", BINDINGS)
def test_the_advice_holds_where_memory_comes_in_blocks(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, binding: Binding
) -> None:
    """Batch 4 of 64×64 has 115 kB, less than is free, but in eleven pieces, which take 23 of the 16 blocks."""
    stand_in = install(monkeypatch, binding)
    stand_in.driver.memory, stand_in.driver.block = 16 << 13, 1 << 13
    with TrtBackend(write_standin_engine(tmp_path, stand_in), slots=1, binding=binding) as backend:
        with pytest.raises(BatchTooLarge, match="batch 2 fits") as caught:
            backend.infer(*feed(8, 64, 64))
        assert caught.value.fits == 2
        assert_same(backend.infer(*feed(2, 64, 64)), expected(*feed(2, 64, 64)))
    del caught  # its traceback holds the engine
    stand_in.check_end()


def test_what_a_slot_holds_for_other_shapes_goes_where_both_dont_fit(engine: Path, stand_in: StandIn) -> None:
    """Batch 8 of 32×32 has the larger outputs, batch 1 of 96×96 the larger input: together too much, each alone not."""
    stand_in.driver.memory = 66_500
    with TrtBackend(engine, slots=1) as backend:
        for _ in range(2):
            for shape in ((8, 32, 32), (1, 96, 96)):
                assert_same(backend.infer(*feed(*shape)), expected(*feed(*shape)))
    stand_in.check_end()


def test_out_of_pinned_memory(engine: Path, stand_in: StandIn) -> None:
    stand_in.driver.pinned_memory = 20_000
    with TrtBackend(engine) as backend:
        with pytest.raises(
            CudaError, match=r"cannot allocate 0\.1 MiB of pinned host memory; use a smaller batch or fewer"
        ):
            backend.infer(*feed(8, 64, 64))
        assert_same(backend.infer(*feed(1, 32, 32)), expected(*feed(1, 32, 32)))
    stand_in.check_end()


@pytest.mark.parametrize("binding", BINDINGS)
def test_another_device_and_the_callers_own_stays_current(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, binding: Binding
) -> None:
    stand_in = install(monkeypatch, binding)
    with TrtBackend(write_standin_engine(tmp_path, stand_in), device=1, binding=binding) as backend:
        with ThreadPoolExecutor(2) as pool:
            feeds = [feed(1, 64, 64, seed) for seed in range(6)]
            for given, each in zip(pool.map(lambda each: backend.infer(*each), feeds), feeds, strict=True):
                assert_same(given, expected(*each))
        assert {allocation.device for allocation in stand_in.driver.allocations.values()} == {1}
        assert stand_in.driver.device() == 0
    stand_in.check_end()
