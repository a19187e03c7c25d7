"""A pool of actors that work through numbered tasks; every task's answer comes exactly once, in the tasks' order.

Ray Data hands the tasks out and holds back where the consumer is slow. What a lost actor or node had not answered is
done again, by a new pool.
"""

from __future__ import annotations

import json
import re
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from ..backends.engine_file import SUFFIXES as ENGINE_SUFFIXES
from ..backends.options import OPTIONS_BY_BACKEND
from ..errors import UserError
from ..model_spec import ModelSpec
from .connection import ClusterError

RETRIES = 3  # of a task whose actor is lost; an image that kills every process must not run for ever
MOST_TASKS = 2000  # of a run: Ray stores each by itself before the first begins
PAUSE_S = 1.0  # before a new pool: the actors of the one before give back what they hold
_SHARE = 0.9  # of the processors that actors book: an actor that starts anew finds some left
Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Pool:
    """How many actors there are, and what of a node Ray books for each."""

    actors: int
    gpus: int  # of each actor: 0 or 1
    cpus: float  # of each actor; the threads of its detector are its own choice


def plan_pool(resources: Mapping[str, float], nodes: int, asked: int | None, gpus: bool | None) -> Pool:
    """The pool for a cluster with `resources` (Ray's "CPU" and "GPU") and a number of nodes.

    `gpus` says whether each actor needs a GPU; None: it takes one if there is any. Raises ClusterError where GPUs are
    needed and missing.
    """
    there = int(resources.get("GPU", 0))
    if gpus and there == 0:
        raise ClusterError(
            "the Ray cluster has no GPU, and this model or --backend needs one; start a node that has some (ray start "
            "--num-gpus N tells Ray of them), or choose --backend cpu"
        )
    takes_gpu = there > 0 if gpus is None else gpus
    actors = asked or (there if takes_gpu else max(1, nodes))
    if takes_gpu and actors > there:
        raise ClusterError(
            f"--actors {actors}: each takes a GPU of its own, and the Ray cluster has {there}; ask for at most {there}"
        )
    cpus = round(min(1.0, _SHARE * resources.get("CPU", 0.0) / actors), 4)
    return Pool(actors, int(takes_gpu), cpus)


def needs_gpu(model: ModelSpec, backend: str) -> bool | None:
    """Whether a model runs on a GPU only, with this --backend; None where that is the backend's choice."""
    if isinstance(model.path, str):
        return False  # a served model runs where its server is
    if model.path.suffix.lower() in ENGINE_SUFFIXES:
        return True
    named = model.backend or backend
    return None if named == "auto" else "device" in OPTIONS_BY_BACKEND[named]


def find_pool(ray: Any, asked: int | None, gpus: bool | None) -> Pool:
    """`plan_pool` for the cluster that Ray is connected to."""
    alive = [node for node in ray.nodes() if node["Alive"]]
    return plan_pool(ray.cluster_resources(), len(alive), asked, gpus)


class Job(Protocol):
    """What an actor does, sent to it once; `open` is called there and gives the function that answers tasks."""

    def open(self) -> Callable[[Any], str]:
        """Take what answering needs (a detector). Errors of `open` and of the function are UserErrors, or bugs."""
        ...


def refit(pool: Pool, resources: Mapping[str, float]) -> Pool:
    """The pool after a loss: as many of its actors as the cluster still has GPUs for, and their share of what is left.

    Raises ClusterError where no GPU is left for a pool with GPUs.
    """
    there = int(resources.get("GPU", 0))
    if pool.gpus and there == 0:
        raise ClusterError("the Ray cluster has lost its last GPU; start a node again, and run again")
    actors = min(pool.actors, there) if pool.gpus else pool.actors
    return Pool(actors, pool.gpus, round(min(pool.cpus, _SHARE * resources.get("CPU", 0.0) / actors), 4))


def run_once(ray: Any, pool: Pool, function: Callable[..., Answer], *arguments: Any) -> Answer:
    """Call a function on a node of the cluster, with the resources of an actor. Raises UserError as the function."""
    remote = ray.remote(num_cpus=pool.cpus, num_gpus=pool.gpus, max_retries=RETRIES)(guarded)
    try:
        answer, message = ray.get(remote.remote(function, *arguments))
    except Exception as error:
        missing = re.search(r"No module named '([\w.]+)'", str(error))
        if missing is not None:
            raise ClusterError(
                f"a node of the Ray cluster has no {missing[1]}: install the same version of atss-toolkit on every "
                "node, into the environment that runs ray start"
            ) from error
        if not _is_loss(ray, error):
            raise
        raise _given_up(error) from error
    if message is not None:
        raise UserError(message)
    return answer


def run_tasks(ray: Any, pool: Pool, job: Job, tasks: Sequence[Any]) -> Iterator[str]:
    """The answers to the tasks, in their order. A task is anything that JSON can say.

    When an actor or a node is lost, a pool that fits what is left goes on at the first task without an answer. Raises
    UserError where a task or the actor's start does, ClusterError where a task is lost again and again, or where Ray
    gives an answer in the wrong place.
    """
    done, failures, failed_at = 0, 0, -1
    while done < len(tasks):
        try:
            for row in _shared_out(ray, pool, job, tasks, first=done).iter_rows():
                if row["error"]:
                    raise UserError(row["error"])
                if row["number"] != done:
                    raise ClusterError(f"Ray gave the answer to task {row['number']} where {done} was due; run again")
                yield row["answer"]
                done += 1
        except Exception as error:
            if not _is_loss(ray, error):
                raise
            failures, failed_at = (failures + 1 if done == failed_at else 1), done
            if failures > RETRIES:
                raise _given_up(error) from error
            time.sleep(PAUSE_S)
            pool = refit(pool, ray.cluster_resources())
            told = f"Ray lost a process or a node; going on at task {done + 1} of {len(tasks)}"
            print(f"warning: {told} with {pool.actors} actors", file=sys.stderr)
        else:
            if done != len(tasks):
                raise ClusterError(f"Ray gave {done} of {len(tasks)} answers; run again")


class Actor:
    """What runs in each process of the pool: Ray calls it with a batch of one task, and gets a batch of one answer."""

    def __init__(self, job: Job) -> None:
        # An error here would have Ray start actor after actor; as an answer it ends the run.
        self._work, self._error = guarded(job.open)

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, list[Any]]:
        """The answer to the one task of the batch, or the message of a UserError."""
        answer, error = None, self._error
        if self._work is not None:
            answer, error = guarded(self._work, json.loads(batch["task"][0]))
        return {"number": [int(batch["number"][0])], "answer": [answer or ""], "error": [error or ""]}


def guarded(function: Callable[..., Answer], *arguments: Any) -> tuple[Answer | None, str | None]:
    """What a function returns, or the message of its UserError, which Ray would send as a traceback."""
    try:
        return function(*arguments), None
    except UserError as error:
        return None, str(error)


def _shared_out(ray: Any, pool: Pool, job: Job, tasks: Sequence[Any], first: int) -> Any:
    """Ray's data set of the answers from task `first` on, which is computed while it is iterated."""
    rows = [{"number": number, "task": json.dumps(tasks[number])} for number in range(first, len(tasks))]
    context = ray.data.DataContext.get_current()
    before = context.execution_options.preserve_order, context.enable_progress_bars
    context.execution_options.preserve_order, context.enable_progress_bars = True, False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Ray's own deprecations
            return ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
                Actor,
                fn_constructor_args=(job,),
                batch_size=1,
                compute=ray.data.ActorPoolStrategy(size=min(pool.actors, len(rows))),
                num_cpus=pool.cpus,
                num_gpus=pool.gpus or None,
                ray_remote_args_fn=_no_restarts,
            )
    finally:  # the data set has a copy of the context
        context.execution_options.preserve_order, context.enable_progress_bars = before


def _no_restarts() -> dict[str, int]:
    """Ray would start a lost actor again as soon as there is room for it: never, where a node with its GPU is gone."""
    return {"max_restarts": 0, "max_task_retries": 0}


def _is_loss(ray: Any, error: Exception) -> bool:
    """Whether an actor, a node or what it held was lost; the error of a task is a bug, and keeps Ray's traceback."""
    return isinstance(error, ray.exceptions.RayError) and not isinstance(error, ray.exceptions.RayTaskError)


def _given_up(error: Exception) -> ClusterError:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return ClusterError(
        f"Ray lost a process or a node {RETRIES + 1} times at the same task: {reason} It may have run out of memory: "
        "try fewer --actors, or a smaller --batch"
    )
