"""How work is shared out, without Ray: the pool, the options, and what is refused."""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from runtime.cluster import pool as pool_module
from runtime.cluster.connection import ClusterError, connected
from runtime.cluster.pool import RETRIES, Pool, needs_gpu, plan_pool, refit, run_once, run_tasks
from runtime.coco.command import main as evaluate
from runtime.detect import main as detect
from runtime.detecting.cluster import plan_tasks
from runtime.errors import UserError
from runtime.images.sources import Source
from runtime.images.stored import RowGroup
from runtime.model_spec import ModelSpec
from tests.support.cluster_jobs import Doubling


@pytest.mark.parametrize(
    ("resources", "nodes", "asked", "gpus", "expected"),
    [
        ({"CPU": 2.0}, 1, None, None, Pool(1, 0, 1.0)),
        ({"CPU": 2.0}, 1, 2, None, Pool(2, 0, 0.9)),
        ({"CPU": 64.0}, 4, None, False, Pool(4, 0, 1.0)),
        ({"CPU": 64.0, "GPU": 8.0}, 2, None, None, Pool(8, 1, 1.0)),
        ({"CPU": 64.0, "GPU": 8.0}, 2, 3, True, Pool(3, 1, 1.0)),
        ({"CPU": 64.0, "GPU": 8.0}, 2, None, False, Pool(2, 0, 1.0)),
        ({"CPU": 4.0, "GPU": 8.0}, 1, None, True, Pool(8, 1, 0.45)),
        ({}, 0, None, None, Pool(1, 0, 0.0)),
    ],
)
def test_the_pool(
    resources: dict[str, float], nodes: int, asked: int | None, gpus: bool | None, expected: Pool
) -> None:
    pool = plan_pool(resources, nodes, asked, gpus)
    assert pool == expected
    assert pool.cpus * pool.actors <= resources.get("CPU", 0.0), "else an actor waits for ever"


def test_gpus_that_are_not_there() -> None:
    with pytest.raises(ClusterError, match="the Ray cluster has no GPU, and this model or --backend needs one"):
        plan_pool({"CPU": 8.0}, 1, None, True)
    with pytest.raises(ClusterError, match="--actors 3: each takes a GPU of its own, and the Ray cluster has 2"):
        plan_pool({"CPU": 8.0, "GPU": 2.0}, 1, 3, None)


@pytest.mark.parametrize(
    ("model", "backend", "expected"),
    [
        ("m.onnx", "auto", None),
        ("m.onnx", "cpu", False),
        ("m.onnx", "openvino", False),
        ("m.onnx", "cuda", True),
        ("m.onnx@openvino", "cuda", False),
        ("m.onnx@ort-rtx", "auto", True),
        ("m.engine", "auto", True),
        ("triton://localhost:8001/m", "auto", False),
    ],
)
def test_which_models_need_a_gpu(model: str, backend: str, expected: bool | None) -> None:
    assert needs_gpu(ModelSpec.parse(model), backend) is expected


def test_ray_that_is_not_installed_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    for missing in ("ray", "ray.data"):
        monkeypatch.setitem(sys.modules, missing, None)
        monkeypatch.setitem(sys.modules, "ray", None if missing == "ray" else ModuleType("ray"))
        with pytest.raises(ClusterError, match=r"not installed .*: install atss-toolkit with the extra ray"):
            connected("local").__enter__()


class Lost(Exception):
    """An actor or a node that is gone."""


class Bug(Lost):
    """An error inside a task."""


class FakeRay(ModuleType):
    """As much of Ray as a run without a cluster touches."""

    def __init__(self, answers: list[dict[str, Any]] | None = None, losses: Iterable[int] = ()) -> None:
        super().__init__("ray")
        self.inits: list[str] = []
        self.answers = answers or []
        self.losses, self.begun = list(losses), list[int]()  # how many answers come before each loss; first tasks
        self.exceptions = SimpleNamespace(RayError=Lost, RayTaskError=Bug)
        options = SimpleNamespace(preserve_order=False)
        context = SimpleNamespace(execution_options=options, enable_progress_bars=True)
        self.data = SimpleNamespace(
            DataContext=SimpleNamespace(get_current=lambda: context),
            ActorPoolStrategy=lambda size: size,
            from_items=self.from_items,
        )
        self.context = context

    def is_initialized(self) -> bool:
        return False

    def init(self, address: str, **_: Any) -> None:
        self.inits.append(address)
        raise ConnectionError("Could not find any running Ray instance. Please specify\nthe one")

    def from_items(self, rows: list[dict[str, Any]], override_num_blocks: int) -> FakeRay:
        assert override_num_blocks == len(rows), "each task is handed out by itself"
        self.begun.append(rows[0]["number"])
        return self

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": 1.0}

    def map_batches(self, *_: Any, **__: Any) -> FakeRay:
        assert self.context.execution_options.preserve_order, "answers are checked by their order"
        return self

    def iter_rows(self) -> Iterator[dict[str, Any]]:
        begun = self.begun[-1]
        if not self.losses:
            yield from self.answers[begun:]
            return
        yield from self.answers[begun : begun + self.losses.pop(0)]
        raise Lost("The actor died.\nits log")


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeRay:
    ray = FakeRay()
    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.setitem(sys.modules, "ray.data", ray.data)
    return ray


def test_a_cluster_that_is_not_there_is_one_line(fake: FakeRay) -> None:
    with closing(socket.socket()) as taken:  # a port at which nothing listens
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        for given, said in {
            address: "cannot connect to Ray at 127.0.0.1:.*refused; check the address that ray start --head printed",
            "nowhere.invalid:6379": "cannot connect to Ray at nowhere.invalid:6379: ",
            "photos/": "--ray is 'photos/', expected auto, HOST:PORT",
            "host:99999": "cannot connect to Ray at host:99999: ",
        }.items():
            with pytest.raises(ClusterError, match=said) as raised:
                connected(given).__enter__()
            assert "\n" not in str(raised.value)
    assert fake.inits == [], "Ray would try for minutes"
    with pytest.raises(ClusterError, match="at auto: Could not find any running Ray instance; start") as raised:
        connected("auto").__enter__()
    assert "\n" not in str(raised.value)


def answer(number: int, text: str = "x", error: str = "") -> dict[str, Any]:
    return {"number": number, "answer": text, "error": error}


def test_answers_come_once_and_in_order() -> None:
    pool = Pool(2, 0, 0.5)
    assert list(run_tasks(FakeRay(), pool, Doubling(), [])) == []
    good = FakeRay([answer(0, "a"), answer(1, "b"), answer(2, "c")])
    assert list(run_tasks(good, pool, Doubling(), [5, 6, 7])) == ["a", "b", "c"]
    assert good.context.execution_options.preserve_order is False, "others' data sets keep their settings"
    for answers, said in (
        ([answer(0), answer(0), answer(1)], "the answer to task 0 where 1 was due"),
        ([answer(0), answer(2)], "the answer to task 2 where 1 was due"),
        ([answer(1), answer(0), answer(2)], "the answer to task 1 where 0 was due"),
        ([answer(0), answer(1)], "gave 2 of 3 answers"),
        ([answer(0), answer(1), answer(2), answer(3)], "gave 4 of 3 answers"),
    ):
        with pytest.raises(ClusterError, match=said):
            list(run_tasks(FakeRay(answers), pool, Doubling(), [5, 6, 7]))
    with pytest.raises(UserError, match=r"^a\.png: no such file$"):
        list(run_tasks(FakeRay([answer(0, "", "a.png: no such file")]), pool, Doubling(), [5]))


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_module, "PAUSE_S", 0.0)


@pytest.mark.parametrize("losses", [[0], [2], [5], [1, 1], [2, 0, 0, 2], [0] * RETRIES])
def test_what_a_loss_left_undone_is_done_again(losses: list[int], capsys: pytest.CaptureFixture[str]) -> None:
    count = 6
    ray = FakeRay([answer(number, str(number)) for number in range(count)], losses)
    found = list(run_tasks(ray, Pool(2, 0, 0.9), Doubling(), range(count)))
    assert found == [str(number) for number in range(count)]
    assert ray.begun == [sum(losses[:pools]) for pools in range(len(losses) + 1)], "from the first without an answer"
    said = capsys.readouterr().err.splitlines()
    assert said[0] == f"warning: Ray lost a process or a node; going on at task {losses[0] + 1} of 6 with 2 actors"
    assert len(said) == len(losses)


def test_a_task_that_is_lost_again_and_again_and_a_bug_end_the_run() -> None:
    answers = [answer(number) for number in range(6)]
    ray = FakeRay(answers, [2, *[0] * RETRIES, 0])
    with pytest.raises(ClusterError, match=f"lost a process or a node {RETRIES + 1} times at the same task: The actor"):
        list(run_tasks(ray, Pool(2, 0, 0.9), Doubling(), range(6)))
    assert ray.begun == [0] + [2] * RETRIES
    ray = FakeRay(answers)
    ray.iter_rows = lambda: (_ for _ in ()).throw(Bug("KeyError: 'x'"))  # type: ignore[method-assign]
    with pytest.raises(Bug):
        list(run_tasks(ray, Pool(2, 0, 0.9), Doubling(), range(6)))
    assert ray.begun == [0], "a bug is not tried again"


@pytest.mark.parametrize(("count", "tasks"), [(0, 0), (1, 1), (32, 1), (33, 2), (64_000, 2000), (100_001, 1961)])
def test_every_image_is_in_one_task(count: int, tasks: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    sources = [Source(Path(f"{number}.jpg"), str(number), False) for number in range(count)]
    groups = [RowGroup("a.parquet", 0, 5), RowGroup("a.parquet", 2, 7)]
    planned = plan_tasks(sources, groups, batch=4)
    assert len(planned) == tasks + 2
    assert [path for task in planned[:tasks] for path in task["paths"]] == [f"{tmp_path}/{n}.jpg" for n in range(count)]
    whole = [RowGroup(f"{tmp_path}/a.parquet", 0, 5), RowGroup(f"{tmp_path}/a.parquet", 2, 7)]
    assert [RowGroup(*task["group"]) for task in planned[tasks:]] == whole
    assert json.loads(json.dumps(planned)) == planned


@pytest.mark.parametrize(
    ("raised", "expected", "said"),
    [
        (Bug("ray::guarded()\nModuleNotFoundError: No module named 'runtime.cluster'"), ClusterError, "has no runtime"),
        (Bug("KeyError: 'x'"), Bug, "KeyError"),
        (Lost("The node died."), ClusterError, "times at the same task: The node died"),
    ],
)
def test_what_a_node_cannot_do(raised: Exception, expected: type[Exception], said: str) -> None:
    class Remote(FakeRay):
        def remote(self, **resources: Any) -> Any:
            assert resources["num_gpus"] == 1
            return lambda function: SimpleNamespace(remote=lambda *arguments: None)

        def get(self, _: Any) -> Any:
            raise raised

    with pytest.raises(expected, match=said):
        run_once(Remote(), Pool(1, 1, 0.5), print)


def test_the_pool_after_a_loss() -> None:
    assert refit(Pool(4, 0, 1.0), {"CPU": 8.0}) == Pool(4, 0, 1.0)
    assert refit(Pool(4, 0, 1.0), {"CPU": 2.0}) == Pool(4, 0, 0.45)
    assert refit(Pool(4, 1, 1.0), {"CPU": 8.0, "GPU": 3.0}) == Pool(3, 1, 1.0)
    assert refit(Pool(4, 1, 1.0), {"CPU": 8.0, "GPU": 9.0}) == Pool(4, 1, 1.0)
    with pytest.raises(ClusterError, match="has lost its last GPU"):
        refit(Pool(4, 1, 1.0), {"CPU": 8.0})


@pytest.mark.parametrize(
    "options",
    [["--actors", "2"], ["--ray", "--actors", "0"], ["--ray", "--device", "1"]],
)
def test_wrong_usage(options: list[str], tmp_path: Path) -> None:
    for command in (
        [detect, "m.onnx", str(tmp_path), *options],
        [evaluate, "m.onnx", "--annotations", "a.json", "--images", str(tmp_path), *options],
    ):
        with pytest.raises(SystemExit) as raised:
            command[0](command[1:])  # type: ignore[operator]
        assert raised.value.code == 2


def test_what_a_cluster_is_not_given(tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        evaluate(["a.onnx", "b.onnx", "--annotations", "a.json", "--images", str(tmp_path), "--ray"])
    given = ["m.onnx", "--annotations", "a.json", "--images", str(tmp_path), "--ray", "--shard", "0/2"]
    with pytest.raises(SystemExit):
        evaluate([*given, "--results-out", str(tmp_path / "r.json")])
    for moving in ("film.mp4", "rtsp://user:secret@camera/1", "camera:0"):
        with pytest.raises(UserError, match="--ray takes images; detect on videos and streams without it") as raised:
            detect(["m.onnx", moving, "-o", str(tmp_path / "out"), "--ray"])
        assert "secret" not in str(raised.value)
