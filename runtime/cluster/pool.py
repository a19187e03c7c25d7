"""A pool of actors that work through numbered tasks; every task's answer comes exactly once, in the tasks' order.

Ray Data hands the tasks out, starts an actor anew that is killed or whose node is lost, runs its task again, and holds
back where the consumer is slow.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from ..backends.engine_file import SUFFIXES as ENGINE_SUFFIXES
from ..backends.options import OPTIONS_BY_BACKEND
from ..errors import UserError
from ..model_spec import ModelSpec
from .connection import ClusterError

RETRIES = 3  # of a task whose actor died; an image that kills every process must not run for ever
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


def run_once(ray: Any, pool: Pool, function: Callable[..., Answer], *arguments: Any) -> Answer:
    """Call a function on a node of the cluster, with the resources of an actor. Raises UserError as the function."""
    remote = ray.remote(num_cpus=pool.cpus, num_gpus=pool.gpus, max_retries=RETRIES)(_guarded)
    with _as_cluster_errors(ray):
        answer, message = ray.get(remote.remote(function, *arguments))
    if message is not None:
        raise UserError(message)
    return answer


def run_tasks(ray: Any, pool: Pool, job: Job, tasks: Sequence[Any]) -> Iterator[str]:
    """The answers to the tasks, in their order. A task is anything that JSON can say.

    Raises UserError where a task or the actor's start does, ClusterError where an actor dies again and again or an
    answer is lost or doubled.
    """
    if not tasks:
        return
    expected = 0
    with _as_cluster_errors(ray):
        for row in _shared_out(ray, pool, job, tasks).iter_rows():
            if row["error"]:
                raise UserError(row["error"])
            if row["number"] != expected:
                raise ClusterError(f"Ray gave the answer to task {row['number']} where {expected} was due; run again")
            yield row["answer"]
            expected += 1
    if expected != len(tasks):
        raise ClusterError(f"Ray gave {expected} of {len(tasks)} answers; run again")


class Actor:
    """What runs in each process of the pool: Ray calls it with a batch of one task, and gets a batch of one answer."""

    def __init__(self, job: Job) -> None:
        # An error here would have Ray start actor after actor; as an answer it ends the run.
        self._work, self._error = _guarded(job.open)

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, list[Any]]:
        """The answer to the one task of the batch, or the message of a UserError."""
        answer, error = None, self._error
        if self._work is not None:
            answer, error = _guarded(self._work, json.loads(batch["task"][0]))
        return {"number": [int(batch["number"][0])], "answer": [answer or ""], "error": [error or ""]}


def _guarded(function: Callable[..., Answer], *arguments: Any) -> tuple[Answer | None, str | None]:
    """What a function returns, or the message of its UserError, which Ray would send as a traceback."""
    try:
        return function(*arguments), None
    except UserError as error:
        return None, str(error)


def _shared_out(ray: Any, pool: Pool, job: Job, tasks: Sequence[Any]) -> Any:
    """Ray's data set of the answers, which is computed while it is iterated."""
    rows = [{"number": number, "task": json.dumps(task)} for number, task in enumerate(tasks)]
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
                ray_remote_args_fn=_restarts,
            )
    finally:  # the data set has a copy of the context
        context.execution_options.preserve_order, context.enable_progress_bars = before


def _restarts() -> dict[str, int]:
    return {"max_restarts": -1, "max_task_retries": RETRIES}


@contextmanager
def _as_cluster_errors(ray: Any) -> Iterator[None]:
    """Raise ClusterError for actors and nodes that die; a bug in a task keeps Ray's traceback."""
    try:
        yield
    except ray.exceptions.RayTaskError:
        raise
    except ray.exceptions.RayError as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ClusterError(
            f"Ray lost a process or a node {RETRIES + 1} times at the same task, or could not start it: {reason}; it "
            "may have run out of memory: try fewer --actors, or a smaller --batch"
        ) from error
