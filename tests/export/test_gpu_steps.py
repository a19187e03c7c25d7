"""benchmarks/gpu: NMS and ONNX Runtime's sessions as its steps time them, on the CPU."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from benchmarks.gpu import nms
from benchmarks.gpu.onnx_in_torch import TorchGraph
from benchmarks.gpu.ort_sessions import bound_side, open_raw, operators, profiled
from benchmarks.sides import alternate, times_as_fast
from export.onnx_model.nms import BLOCKS, CANDIDATES, WIDE, NmsForm
from export.verification.matching import greedy_nms
from runtime.detections import Detections
from runtime.manifest import Thresholds
from tests.support.fake_gpu import FAKE_GPU, HostWaits, fake_gpu

THRESHOLDS = Thresholds()
COUNT = 1200  # more than NMS ranks, in blocks of 256


def crowd(images: int) -> dict[str, np.ndarray]:
    """Candidates in clusters, some rows unused."""
    rng = np.random.default_rng(1)
    corner = rng.uniform(0, 300, (images, 60, 2)).repeat(COUNT // 60, axis=1) + rng.normal(0, 6, (images, COUNT, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(40, 60, (images, COUNT, 2))], axis=2).astype(np.float32)
    scores = rng.permuted(np.tile(np.linspace(0.05, 0.95, COUNT, dtype=np.float32), (images, 1)), axis=1)
    scores[:, ::3] = 0
    classes = np.where(scores > 0, rng.integers(0, 3, (images, COUNT)), -1).astype(np.int32)
    return dict(zip(map(nms.given_name, CANDIDATES), (boxes, scores, classes), strict=True))


def expected(given: dict[str, np.ndarray]) -> list[Detections]:
    found = []
    for boxes, scores, classes in zip(*given.values(), strict=True):
        used = scores > 0
        candidates = Detections(boxes[used], scores[used], classes[used])
        found.append(greedy_nms(candidates, THRESHOLDS.nms_iou, THRESHOLDS.detections))
    return found


@pytest.mark.parametrize("form", [WIDE, BLOCKS])
def test_nms_in_torch_is_greedy_nms(form: NmsForm) -> None:
    given = crowd(2)
    graph = TorchGraph(nms.nms_model(COUNT, THRESHOLDS, form), "cpu")
    found = graph({name: torch.from_numpy(array) for name, array in given.items()})
    assert found["nms_exact"].flatten().tolist() == [1, 1]
    assert nms.count_differing(nms.detections(found), expected(given)) == 0


@pytest.mark.parametrize("form", [WIDE, BLOCKS])
def test_the_host_waits_for_nothing_in_nms(form: NmsForm) -> None:
    """A CUDA graph can't record a wait."""
    model = nms.nms_model(COUNT, THRESHOLDS, form)
    with fake_gpu():
        graph = TorchGraph(model, "cuda")
        given = {name: torch.from_numpy(array).to(FAKE_GPU) for name, array in crowd(2).items()}
        with HostWaits():
            found = graph(given)
        assert {value.device for value in found.values()} == {FAKE_GPU}


def test_torchvision_keeps_what_greedy_nms_keeps() -> None:
    given = crowd(2)
    kept = nms.reference(*(torch.from_numpy(array) for array in given.values()), THRESHOLDS)
    ours = [Detections(*(part.numpy() for part in image)) for image in kept]
    assert nms.count_differing(ours, expected(given)) == 0


def test_a_planted_difference_is_counted() -> None:
    right = expected(crowd(2))
    moved = right[0].boxes.copy()
    moved[3] += 5
    other = np.where(np.arange(len(right[0])) == 3, right[0].classes + 1, right[0].classes)
    assert nms.count_differing([Detections(moved, right[0].scores, right[0].classes), right[1]], right) == 2
    assert nms.count_differing([Detections(right[0].boxes, right[0].scores, other), right[1]], right) == 2
    fewer = Detections(right[1].boxes[1:], right[1].scores[1:], right[1].classes[1:])
    assert nms.count_differing([right[0], fewer], right) == 1


def test_an_operator_that_nms_lacks_is_named() -> None:
    model = nms.nms_model(COUNT, THRESHOLDS, WIDE)
    model.graph.node[0].op_type = "Softmax"
    with pytest.raises(NotImplementedError, match="Softmax"):
        TorchGraph(model, "cpu")({name: torch.from_numpy(array) for name, array in crowd(1).items()})


def test_bound_runs_give_the_sum_of_an_output(tmp_path: Path) -> None:
    path, given = tmp_path / "nms.onnx", crowd(2)
    onnx.save(nms.nms_model(COUNT, THRESHOLDS, WIDE), path)
    session, total = open_raw(path, "cpu"), sum(map(len, expected(given)))
    assert bound_side(session, given, "cpu", "num_detections")() == total
    assert bound_side(session, given, "cpu")() == 0
    fixed = bound_side(open_raw(path, "cpu"), given, "cpu", "num_detections", fixed_by=session)
    assert [fixed(), fixed()] == [total, total]


def test_operators_of_a_profile(tmp_path: Path) -> None:
    def event(name: str, kind: str, provider: str, microseconds: int) -> dict[str, object]:
        args = {"op_name": kind, "provider": f"{provider}ExecutionProvider"}
        return {"cat": "Node", "name": f"{name}_kernel_time", "dur": microseconds, "args": args}

    runs = [
        [event("a", "Conv", "CUDA", 9000), event("b", "Conv", "CUDA", 8000), event("c", "TopK", "CPU", 7000)],
        [event("a", "Conv", "CUDA", 1000), event("b", "Conv", "CUDA", 500), event("c", "TopK", "CPU", 2000)],
        [event("a", "Conv", "CUDA", 3000), event("b", "Conv", "CUDA", 500), event("c", "TopK", "CPU", 2000)],
    ]
    other = [{"cat": "Session", "name": "model_run", "dur": 1}, {"cat": "Node", "name": "a_fence_before", "dur": 1}]
    path = tmp_path / "profile.json"
    path.write_text(json.dumps([*other, *(each for run in runs for each in run)]))
    assert operators(path) == [  # the first run warms up
        {"operator": "Conv", "provider": "CUDA", "nodes": 2, "ms": 2.5},
        {"operator": "TopK", "provider": "CPU", "nodes": 1, "ms": 2.0},
    ]


def test_a_real_profile_names_every_node_once(tmp_path: Path) -> None:
    path, given = tmp_path / "nms.onnx", crowd(1)
    onnx.save(nms.nms_model(COUNT, THRESHOLDS, WIDE), path)
    rows = profiled(path, "cpu", given, runs=3)
    found = {row["operator"]: row["nodes"] for row in rows}
    assert found["MatMul"] == WIDE.iterations - 1
    assert found["TopK"] == 2
    assert {row["provider"] for row in rows} == {"CPU"}


def test_sides_alternate_and_the_first_round_warms_up() -> None:
    order: list[str] = []

    def side(name: str) -> int:
        order.append(name)
        return 7

    times = alternate({name: lambda name=name: side(name) for name in "ABC"}, 3)  # type: ignore[misc]
    assert "".join(order) == "CBAABCCBAABC"
    assert {name: len(seconds) for name, seconds in times.wall.items()} == dict.fromkeys("ABC", 3)
    assert times.found == dict.fromkeys("ABC", 7)


def test_a_side_that_fails_is_left_out() -> None:
    calls: list[int] = []

    def fails_later() -> int:
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError("out of memory")
        return 1

    told: list[tuple[str, str]] = []
    times = alternate({"good": lambda: 1, "bad": fails_later}, 3, lambda name, error: told.append((name, str(error))))
    assert told == [("bad", "out of memory")]
    assert list(times.wall) == list(times.processor) == list(times.found) == ["good"]
    assert len(times.wall["good"]) == 3
    with pytest.raises(RuntimeError, match="out of memory"):
        calls.clear() or alternate({"bad": fails_later}, 3)


def test_ratio_of_speeds_is_the_median_over_rounds() -> None:
    assert times_as_fast({"a": [1, 2, 4], "b": [3, 4, 40]}, "a", "b") == 3


def test_the_step_runs_and_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "nms.json"
    nms.main(["--json", str(path), "--rehearse"])
    first = json.loads(path.read_text())
    assert first["failures"] == {}
    same = first["tables"]["NMS keeps the same"]
    assert [(row["batch"], row["form"], row["images_exact"]) for row in same] == [
        (batch, form, batch) for batch in (1, 2) for form in ("wide", "blocks")
    ]
    assert {row[key] for row in same for key in ("differing_in_torch", "differing_in_onnxruntime")} == {0}
    nms.main(["--json", str(path), "--rehearse"])
    assert json.loads(path.read_text()) == first
