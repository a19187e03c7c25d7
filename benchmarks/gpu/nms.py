"""Postprocessing and both forms of NMS in microseconds and launches, beside torchvision's `batched_nms`.

    python -m benchmarks.gpu.nms --json step.json --minutes 2 [--rehearse]

The candidates are those that the postprocessing finds in dense maps of 800 × 1344 with 80 classes and some objects. The
postprocessing and NMS run in torch, eagerly and as a CUDA graph; NMS also runs in ONNX Runtime on tensors in the
device's memory. All alternate on the same candidates, and all must keep the same boxes.
"""

from __future__ import annotations

import dataclasses
import statistics
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import torch
from onnx import TensorProto
from torch import Tensor
from torchvision.ops import batched_nms, nms

from benchmarks.gpu.onnx_in_torch import TorchGraph
from benchmarks.gpu.ort_sessions import bound_side, open_raw
from benchmarks.gpu.step import Record, begin
from benchmarks.sides import Side, alternate, times_as_fast
from export.graph.deployable import graph_canvases
from export.graph.shapes import input_shapes
from export.onnx_model.nms import BLOCKS, CANDIDATES, WIDE, NmsForm, with_nms
from export.verification.matching import count_unmatched
from runtime.detections import Detections
from runtime.manifest import Thresholds
from train.build import build_postprocess
from train.config.recipes import RECIPES
from train.geometry.anchors import LevelAxes
from train.model.detector import DenseOutputs
from train.model.postprocess import Canvases, Postprocess, select_candidates

RECIPE, CLASSES, OBJECTS = "atss_r50_fpn_1x", 80, 40
FORMS = {"wide": WIDE, "blocks": BLOCKS}
REFERENCE = "torchvision batched_nms"


class Scene(NamedTuple):
    """Dense maps of a batch, and what the graph knows of its canvas."""

    outputs: DenseOutputs
    image_sizes: Tensor
    rule: Postprocess
    canvases: Canvases


def make_scene(batch: int, canvas_hw: tuple[int, int], device: str) -> Scene:
    """Random maps in which objects stand out, each over several cells of a level as in a trained detector's."""
    config = RECIPES[RECIPE]()
    levels, rng = config.model.pyramid.levels, np.random.default_rng(0)
    logits, boxes, quality = [], [], []
    for level in range(levels):
        height, width = (-(-side // (8 << level)) for side in canvas_hw)
        found = rng.normal(-6, 1, (batch, CLASSES, height, width)).astype(np.float32)
        rows, columns = np.mgrid[:height, :width]
        for image in range(batch):
            for _ in range(OBJECTS // levels):
                label, row, column = rng.integers(CLASSES), rng.integers(height), rng.integers(width)
                distance = (rows - row) ** 2 + (columns - column) ** 2
                found[image, label] += 5 * np.exp(-distance / 4)
        logits.append(found)
        boxes.append(rng.normal(0, 0.1, (batch, 4, height, width)).astype(np.float32))
        quality.append(rng.normal(1, 0.5, (batch, 1, height, width)).astype(np.float32))
    maps = [[torch.from_numpy(array).to(device) for array in arrays] for arrays in (logits, boxes, quality)]
    sides = {"short_side": min(canvas_hw), "long_side": max(canvas_hw)}
    shapes = input_shapes(dataclasses.replace(config.preprocess, **sides), batch, canvas_hw)
    known = graph_canvases(shapes, levels, config.model.anchors, config.thresholds)
    axes = known.axes and [LevelAxes(*(_on(value, device) for value in level)) for level in known.axes]
    return Scene(
        DenseOutputs(*maps),
        torch.tensor([canvas_hw] * batch, dtype=torch.int32, device=device),
        build_postprocess(config.model, config.thresholds),
        known._replace(axes=axes),
    )


def _on(value: Any, device: str) -> Any:
    return value.to(device) if isinstance(value, Tensor) else value


def nms_model(count: int, thresholds: Thresholds, form: NmsForm) -> onnx.ModelProto:
    """NMS alone as a model: its inputs `given_boxes`, … are the candidates, `count` of each image."""
    kinds = (TensorProto.FLOAT, TensorProto.FLOAT, TensorProto.INT32)
    dims = (["batch", count, 4], ["batch", count], ["batch", count])
    info = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Identity", [given_name(name)], [name]) for name in CANDIDATES],
        "nms",
        [info(given_name(name), kind, shape) for name, kind, shape in zip(CANDIDATES, kinds, dims, strict=True)],
        [info(name, kind, shape) for name, kind, shape in zip(CANDIDATES, kinds, dims, strict=True)],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)], ir_version=10)
    return with_nms(model, thresholds, form)


def given_name(candidate: str) -> str:
    """The name of the input that stands for an output of candidates."""
    return candidate.replace("candidate", "given")


def reference(boxes: Tensor, scores: Tensor, classes: Tensor, thresholds: Thresholds) -> list[tuple[Tensor, ...]]:
    """Boxes, scores and classes that torchvision's `batched_nms` keeps of each image, at most `detections`."""
    found = []
    for image in range(len(boxes)):
        used = scores[image] > 0
        box, score, label = boxes[image][used], scores[image][used], classes[image][used]
        kept = batched_nms(box, score, label, thresholds.nms_iou)[: thresholds.detections]
        found.append((box[kept], score[kept], label[kept]))
    return found


def class_by_class(boxes: Tensor, scores: Tensor, classes: Tensor, thresholds: Thresholds) -> list[Detections]:
    """The same by torchvision's `nms` of one class after another.

    `batched_nms` moves the classes apart by adding to their boxes, which rounds: it is no reference for equality.
    """
    found = []
    for image in range(len(boxes)):
        used = scores[image] > 0
        box, score, label = boxes[image][used], scores[image][used], classes[image][used]
        members = [torch.nonzero(label == one)[:, 0] for one in label.unique()]
        kept = torch.cat([one[nms(box[one], score[one], thresholds.nms_iou)] for one in members])
        kept = kept[score[kept].argsort(descending=True, stable=True)][: thresholds.detections]
        found.append(Detections(*(part[kept].cpu().numpy() for part in (box, score, label))))
    return found


def detections(found: dict[str, Tensor]) -> list[Detections]:
    """The detections of each image in the outputs of NMS."""
    numbers = found["num_detections"].flatten().tolist()
    parts = [found[f"detection_{name}"].cpu().numpy() for name in ("boxes", "scores", "classes")]
    return [Detections(*(part[image, :count] for part in parts)) for image, count in enumerate(numbers)]


def count_differing(one: Sequence[Detections], other: Sequence[Detections]) -> int:
    """How many detections of either side the other lacks."""
    pairs = list(zip(one, other, strict=True))
    return sum(count_unmatched(a, b) + count_unmatched(b, a) for a, b in pairs)


def recorded(run: Callable[[], Any]) -> Callable[[], None]:
    """The work of a function on CUDA tensors as a CUDA graph."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # what is made at the first run must not be recorded
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kept = run()

    def replay(_kept: Any = kept) -> None:  # the results' memory belongs to the graph
        graph.replay()

    return replay


def launches(run: Callable[[], Any]) -> int:
    """How many kernels, copies and fills the GPU runs, in whichever library."""
    run()
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
        run()
        torch.cuda.synchronize()
    return sum(event.device_type == torch.autograd.DeviceType.CUDA for event in profiler.events())


def repeat(run: Callable[[], Any], times: int, device: str) -> Side:
    """A side that runs a function several times and waits for the GPU once."""

    def several() -> int:
        for _ in range(times):
            run()
        if device == "cuda":
            torch.cuda.synchronize()
        return 0

    return several


def make_runs(record: Record, scene: Scene, folder: Path, backend: str, device: str) -> dict[str, Callable[[], Any]]:
    """The functions to time on a scene, by name. Those of ONNX Runtime return nothing, torch's their outputs."""
    thresholds = scene.rule.thresholds
    select = partial(select_candidates, scene.outputs, scene.image_sizes, scene.rule, scene.canvases)
    candidates = select()
    kept = class_by_class(*candidates, thresholds)
    runs: dict[str, Callable[[], Any]] = {"postprocessing, eager": select}
    batch, count = candidates[1].shape
    record.row(
        "candidates",
        batch=batch,
        of_an_image=count,
        used=(candidates[1] > 0).sum(1).tolist(),
        kept=list(map(len, kept)),
    )
    inputs = {given_name(name): value for name, value in zip(CANDIDATES, candidates, strict=True)}
    feed = {name: value.cpu().numpy() for name, value in inputs.items()}
    for name, form in FORMS.items():
        with record.part(f"NMS {name}, batch {batch}"):
            model = nms_model(count, thresholds, form)
            graph = TorchGraph(model, device)
            runs[f"NMS {name}, eager"] = partial(graph, inputs)
            path = folder / f"{name}.onnx"
            onnx.save(model, path)
            session = open_raw(path, backend)
            runs[f"NMS {name}, ONNX Runtime"] = bound_side(session, feed, device)
            found = graph(inputs)
            values = dict(zip([o.name for o in session.get_outputs()], session.run(None, feed), strict=True))
            there = {name: torch.from_numpy(value) for name, value in values.items()}
            record.row(
                "NMS keeps the same",
                batch=batch,
                form=name,
                images_exact=int(found["nms_exact"].sum()),
                differing_in_torch=count_differing(detections(found), kept),
                differing_in_onnxruntime=count_differing(detections(there), kept),
            )
    runs[REFERENCE] = partial(reference, *candidates, thresholds)
    return runs


def main(arguments: Sequence[str] | None = None) -> None:
    """Time the functions for each batch."""
    record = begin(__doc__, arguments)
    has_gpu = torch.cuda.is_available()
    if not has_gpu and not record.rehearsal:
        record.skip("everything", "torch sees no GPU here; --rehearse runs it on the CPU with small sizes")
        return
    backend = device = "cpu" if record.rehearsal else "cuda"
    batches, canvas_hw = ((1, 2), (192, 256)) if record.rehearsal else ((1, 8, 16, 2, 4), (800, 1344))
    rounds, times = (1, 1) if record.rehearsal else (9, 20)
    for batch in batches:
        if record.has("microseconds", batch=batch):
            continue
        if not record.has_time(15):
            record.skip(f"batch {batch}", "no time left")
            continue
        with record.part(f"batch {batch}"), tempfile.TemporaryDirectory() as folder, torch.inference_mode():
            runs = make_runs(record, make_scene(batch, canvas_hw, device), Path(folder), backend, device)
            if device == "cuda":
                for name in [name for name in runs if name.endswith("eager")]:
                    with record.part(f"{name} as a CUDA graph, batch {batch}"):
                        runs[name.replace("eager", "CUDA graph")] = recorded(runs[name])
            measure(record, runs, batch, rounds, times, device)


def measure(
    record: Record, runs: dict[str, Callable[[], Any]], batch: int, rounds: int, times: int, device: str
) -> None:
    """Rows of alternating functions: microseconds, launches, and how many times as fast as `batched_nms`."""
    sides = {name: repeat(run, times, device) for name, run in runs.items()}
    part = f"time, batch {batch}"
    taken = alternate(sides, rounds, lambda name, error: record.fail(f"{part}: {name}", str(error)[:600])).wall
    for name, seconds in taken.items():
        number = None
        if device == "cuda":
            with record.part(f"launches of {name}, batch {batch}"):
                number = launches(runs[name])
        is_nms = name.startswith("NMS") and REFERENCE in taken
        record.row(
            "microseconds",
            batch=batch,
            what=name,
            microseconds=1e6 * statistics.median(seconds) / times,
            least=1e6 * min(seconds) / times,
            launches=number,
            times_as_fast_as_batched_nms=times_as_fast(taken, name, REFERENCE) if is_nms else None,
        )


if __name__ == "__main__":
    main()
