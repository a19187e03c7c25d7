"""Several processes that train one model: `torchrun … -m train RECIPE …`, on one node or many.

Every process takes its share of each batch; DistributedDataParallel averages the gradients. Process 0 alone writes.
Each function here does the right thing for a single process too, so that the loop has no second path.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from datetime import timedelta
from typing import Any, NamedTuple, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from runtime.errors import EXIT_BAD_INPUT, UserError

# Longer than process 0 takes to score a large validation set while the others wait for it.
TIMEOUT = timedelta(minutes=60)
WATCH_SECONDS = 1.0
_FAILURE = "failure"  # key under which the first process to fail leaves its message


class DistributedError(UserError):
    """Processes that can't work together."""


class World(NamedTuple):
    """Which of how many processes this one is."""

    rank: int = 0
    size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this process writes logs and checkpoints."""
        return self.rank == 0


ALONE = World()


@contextlib.contextmanager
def process_group(use_cuda: bool) -> Iterator[World]:
    """The processes that torchrun started, connected while the block runs; `ALONE` without torchrun.

    NCCL where `use_cuda`, with one GPU per process of a node, else gloo. When a process fails, the others end soon
    with a line that repeats why, whatever they are waiting for. Raises DistributedError.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield ALONE
        return
    if use_cuda:
        _take_gpu(int(os.environ.get("LOCAL_RANK", "0")))
    base, rank, size = next(dist.rendezvous("env://", timeout=TIMEOUT))
    store, world = dist.PrefixStore("atss", base), World(rank, size)
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if use_cuda else "gloo", store=base, rank=rank, world_size=size, timeout=TIMEOUT
    )
    finished = threading.Event()
    watch = threading.Thread(target=_watch, args=(store, world, finished), daemon=True)
    watch.start()
    try:
        yield world
    except BaseException as error:
        finished.set()
        watch.join(timeout=5.0)  # a thread that is inside the store when the interpreter goes would abort the process
        if _lost_connection(error):
            message = _failure(store, wait_seconds=5.0)
            _leave(use_cuda)
            raise DistributedError(_why_stopped(message, world)) from error
        with contextlib.suppress(RuntimeError):  # the store may be gone with the process that held it
            store.set(_FAILURE, f"process {rank} failed: {error or type(error).__name__}")
        _leave(use_cuda)
        raise
    finished.set()
    watch.join()
    dist.barrier()
    dist.destroy_process_group()


def _leave(use_cuda: bool) -> None:
    """Part from the others after a failure: gloo's threads abort a process that ends with them running.

    NCCL would wait for collectives that never end.
    """
    if not use_cuda:
        with contextlib.suppress(RuntimeError):
            dist.destroy_process_group()


def _take_gpu(local_rank: int) -> None:
    count = torch.cuda.device_count()
    if local_rank >= count:
        raise DistributedError(
            f"process {local_rank} of this machine has no GPU, there are {count}: start as many processes as GPUs with "
            "torchrun --nproc-per-node, or add --run.device cpu"
        )
    torch.cuda.set_device(local_rank)


def _watch(store: dist.Store, world: World, finished: threading.Event) -> None:
    """End this process when another one has failed: a collective that waits for that one would never return."""
    while not finished.wait(WATCH_SECONDS):
        message = _failure(store)
        if message is not None and not finished.wait(WATCH_SECONDS):  # the main thread may be saying so already
            print(f"error: {_why_stopped(message, world)}", file=sys.stderr, flush=True)
            os._exit(EXIT_BAD_INPUT)


def _failure(store: dist.Store, wait_seconds: float = 0.0) -> str | None:
    """What the first process to fail said, if one has."""
    until = time.monotonic() + wait_seconds
    while True:
        try:
            if store.check([_FAILURE]):
                return store.get(_FAILURE).decode()
        except RuntimeError:
            return "the process that the others meet at has gone"
        if time.monotonic() >= until:
            return None
        time.sleep(0.1)


def _why_stopped(message: str | None, world: World) -> str:
    reason = message or "another process ended without a word; it may have been killed, or run out of memory"
    return f"process {world.rank} of {world.size} stops: {reason}"


def _lost_connection(error: BaseException) -> bool:
    if isinstance(error, dist.DistBackendError | dist.DistNetworkError):
        return True
    return isinstance(error, RuntimeError) and "gloo" in str(error)


def data_parallel(model: nn.Module, world: World, compiled: bool = False) -> nn.Module:
    """The model as it is trained: its backward pass averages gradients over the processes.

    `compiled` by torch.compile. The result shares the model's parameters; `model` itself stays as it is, so that names
    in its state dict do.
    """
    network = cast(nn.Module, torch.compile(model)) if compiled else model
    return DistributedDataParallel(network) if world.size > 1 else network


def no_sync(model: nn.Module) -> AbstractContextManager[None]:
    """A block in which gradients stay in the process, to be averaged with those of a later pass."""
    return model.no_sync() if isinstance(model, DistributedDataParallel) else contextlib.nullcontext()


def all_reduce(values: Tensor, world: World) -> Tensor:
    """The sum of `values` over the processes; the host doesn't wait for it."""
    if world.size > 1:
        values = values.clone()
        dist.all_reduce(values)
    return values


def all_gather(value: Any, world: World) -> list[Any]:
    """The plain Python value of every process, in order, in every process."""
    if world.size == 1:
        return [value]
    values: list[Any] = [None] * world.size
    dist.all_gather_object(values, value)
    return values


def gather_to_main(value: Any, world: World) -> list[Any]:
    """As `all_gather`, but the other processes receive an empty list."""
    if world.size == 1:
        return [value]
    values: list[Any] | None = [None] * world.size if world.is_main else None
    dist.gather_object(value, values)
    return values or []


def require_agreement(values: dict[str, Any], world: World) -> None:
    """Raise DistributedError, naming the entry, unless all processes give the same values."""
    everyone = all_gather(values, world)
    for name in values:
        for rank, theirs in enumerate(everyone):
            if theirs[name] != everyone[0][name]:
                raise DistributedError(
                    f"{name} is {theirs[name]} in process {rank} but {everyone[0][name]} in process 0; all nodes need "
                    "the same command line, the same data, and an --out folder that they share"
                )


def local_batch_size(batch: int, pieces: int, world: World) -> int:
    """How many images of each batch a process takes. Raises DistributedError unless batches divide evenly."""
    if batch % (world.size * pieces):
        raise DistributedError(
            f"a batch of {batch} can't be shared by {world.size} processes in {pieces} pieces each: --schedule.batch "
            f"must be a multiple of {world.size * pieces}"
        )
    return batch // world.size
