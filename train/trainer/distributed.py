"""Several processes that train one model: `torchrun … -m train RECIPE …`, on one node or many.

Every process takes its share of each batch; DistributedDataParallel averages the gradients. Only process 0 writes.
Every function works for a single process too, so that the loop has a single path.

A process that fails leaves its message in the store that the processes meet at; a thread in every other process watches
for the message and ends its process. torchrun's own failure handling is no substitute on several nodes (torch 2.14,
gloo, two nodes of one process, `@record`, process 1 raising "the disk is full"): torchrun on the other node gives the
lost connection as the root cause and never names the disk, and a process that isn't waiting in a collective works on
(for the whole minute of the trial), since torchrun watches the processes of its own node alone. On one node
torchrun ends all processes within seconds, as the watcher does. `monitored_barrier` exists for gloo only, and needs its
timeout to pass, which must be longer than the evaluation of a large validation set.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import AbstractContextManager
from datetime import timedelta
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from runtime.errors import EXIT_BAD_INPUT, UserError

# Longer than process 0 needs to score a large validation set while the other processes wait.
TIMEOUT = timedelta(minutes=60)
WATCH_SECONDS = 1.0  # between two looks at the store
_FAILURE = "failure"  # the store's key under which the first process to fail leaves its message


class DistributedError(UserError):
    """Processes that can't train together: too few GPUs, a lost process, or differing settings."""


class World(NamedTuple):
    """The rank of this process and the number of processes."""

    rank: int = 0
    size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this process writes logs and checkpoints."""
        return self.rank == 0


ALONE = World()


@contextlib.contextmanager
def process_group(use_cuda: bool) -> Iterator[World]:
    """Connect the processes that torchrun started while the block runs; without torchrun the world is `ALONE`.

    With `use_cuda` the backend is NCCL, and each process of a node has a GPU of its own; otherwise it is gloo. When a
    process fails, the others end within seconds with a line that repeats its message, whatever they are doing. Raises
    DistributedError for a process without a GPU and where the connection to another process is lost.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield ALONE
        return
    if use_cuda:
        _take_gpu(int(os.environ.get("LOCAL_RANK", "0")))
    base, rank, size = next(dist.rendezvous("env://", timeout=TIMEOUT))
    world = World(rank, size)
    base = fresh_store(base, world)
    store = dist.PrefixStore("atss", base)
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
        watch.join(timeout=5.0)  # a thread inside the store would abort the process when the interpreter exits
        if _lost_connection(error):
            message = _failure(store, wait_seconds=5.0)
            _leave(use_cuda)
            raise DistributedError(_why_stopped(message, world)) from error
        with contextlib.suppress(RuntimeError):  # the store may have ended with the process that held it
            store.set(_FAILURE, f"process {rank} failed: {error or type(error).__name__}")
        _leave(use_cuda)
        raise
    finished.set()
    watch.join()
    dist.barrier()
    dist.destroy_process_group()


def fresh_store(shared: dist.Store, world: World) -> dist.Store:
    """A part of a store that only the processes of this start have written to.

    torchrun's store outlives a restart (torch 2.14), and with it the addresses and messages of processes that are gone:
    gloo then connects to closed ports, or waits for ever. The number of restarts is no help as a prefix, because nodes
    count their own. So process 0 makes a name up, and gives it to each process that asks with a new question.
    """
    if world.is_main:
        name, answered = uuid.uuid4().hex, set[str]()
        missing = set(range(1, world.size))
        while missing:
            for rank in missing:
                # The question of a process that is gone is answered too; the process in its place asks another one.
                asked = shared.get(f"question/{rank}").decode() if shared.check([f"question/{rank}"]) else ""
                if asked and asked not in answered:
                    shared.set(f"answer/{asked}", name)
                    answered.add(asked)
            missing = {rank for rank in missing if not shared.check([f"{name}/arrived/{rank}"])}
            time.sleep(0.01 if missing else 0.0)
    else:
        asked = uuid.uuid4().hex
        shared.set(f"question/{world.rank}", asked)
        name = shared.get(f"answer/{asked}").decode()
        shared.set(f"{name}/arrived/{world.rank}", "")
    return dist.PrefixStore(name, shared)


def _leave(use_cuda: bool) -> None:
    """Destroy gloo's process group after a failure: its threads would abort the process at exit.

    NCCL's group is left alone: destroying it would wait for collectives that never end.
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
    """End this process when another has failed: a collective that waits for the failed process never returns."""
    while not finished.wait(WATCH_SECONDS):
        message = _failure(store)
        if message is not None and not finished.wait(WATCH_SECONDS):  # the main thread may be saying so already
            print(f"error: {_why_stopped(message, world)}", file=sys.stderr, flush=True)
            os._exit(EXIT_BAD_INPUT)


def _failure(store: dist.Store, wait_seconds: float = 0.0) -> str | None:
    """The message of the first process that failed, or None while none has."""
    until = time.monotonic() + wait_seconds
    while True:
        try:
            if store.check([_FAILURE]):
                return store.get(_FAILURE).decode()
        except RuntimeError:
            return "the process that holds the store has ended"
        if time.monotonic() >= until:
            return None
        time.sleep(0.1)


def _why_stopped(message: str | None, world: World) -> str:
    reason = message or "another process ended without a message; it may have been killed, or have run out of memory"
    return f"process {world.rank} of {world.size} stops: {reason}"


def _lost_connection(error: BaseException) -> bool:
    if isinstance(error, dist.DistBackendError | dist.DistNetworkError):
        return True
    return isinstance(error, RuntimeError) and "gloo" in str(error)


def data_parallel(model: nn.Module, world: World) -> nn.Module:
    """Wrap a model so that its backward pass averages gradients over the processes; it shares the parameters."""
    return DistributedDataParallel(model) if world.size > 1 else model


def no_sync(model: nn.Module) -> AbstractContextManager[None]:
    """A context in which backward passes only accumulate gradients; the first pass outside averages their sum."""
    return model.no_sync() if isinstance(model, DistributedDataParallel) else contextlib.nullcontext()


def all_reduce(values: Tensor, world: World) -> Tensor:
    """The sum of a tensor over the processes, in every process; the host doesn't wait for the result."""
    if world.size > 1:
        values = values.clone()
        dist.all_reduce(values)
    return values


def all_gather(value: Any, world: World) -> list[Any]:
    """The values of all processes (any that can be pickled), by rank, in every process."""
    if world.size == 1:
        return [value]
    values: list[Any] = [None] * world.size
    dist.all_gather_object(values, value)
    return values


def gather_to_main(value: Any, world: World) -> list[Any]:
    """The values of all processes (any that can be pickled), by rank, in process 0; an empty list in the others."""
    if world.size == 1:
        return [value]
    values: list[Any] | None = [None] * world.size if world.is_main else None
    dist.gather_object(value, values)
    return values or []


def require_agreement(values: dict[str, Any], world: World) -> None:
    """Raise DistributedError, naming the first entry that differs, unless all processes give the same values."""
    everyone = all_gather(values, world)
    for name in values:
        for rank, theirs in enumerate(everyone):
            if theirs[name] != everyone[0][name]:
                raise DistributedError(
                    f"{name} is {theirs[name]} in process {rank} but {everyone[0][name]} in process 0; all nodes need "
                    "the same command line, the same data, and an --out folder that they share"
                )


def local_batch_size(batch: int, pieces: int, world: World) -> int:
    """The number of images of each batch that a process takes, in `pieces` of equal size.

    Raises DistributedError unless the batch divides evenly.
    """
    if batch % (world.size * pieces):
        raise DistributedError(
            f"a batch of {batch} can't be shared by {world.size} processes in {pieces} pieces each: --schedule.batch "
            f"must be a multiple of {world.size * pieces}"
        )
    return batch // world.size
