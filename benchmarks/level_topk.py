"""Measures the ranking of a pyramid level: all scores at once, against the two stages of `train/model/ranking.py`.

    python benchmarks/level_topk.py [--cells 100 168] [--classes 80] [--batch 1] [--threads 1] [--json topk.json]

Both are exported to ONNX and run in ONNX Runtime on one thread, in alternation; the ratio is the median over rounds of
neighbouring runs. In one stage, each of the level's cells × classes scores gets a sigmoid, a threshold and a rank. The
results of every round are compared: the same scores, anchors and classes. Logits are random and scores COCO-like.
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn

from export.graph.checkpoint import quiet_exporter
from export.graph.translation import OPSET
from runtime.files import atomic_write
from runtime.machine.conditions import describe_machine
from runtime.machine.processor import read_processor
from train.model.ranking import AnchorRange, Ranked, Scoring, best_of_large_levels, final_scores

ROWS, THRESHOLD = 1000, 0.05


class OneStage(nn.Module):
    """As it was before: every score of the level gets its sigmoid, its final score and a rank, anchor by anchor."""

    def forward(self, logits: Tensor, centerness: Tensor) -> Ranked:
        """`logits` [B, C, h, w] and `centerness` [B, 1, h, w] → the level's best rows."""
        classes = logits.shape[1]
        class_score, quality = (level.permute(0, 2, 3, 1).flatten(1, 2).sigmoid() for level in (logits, centerness))
        value = torch.where(class_score > THRESHOLD, (class_score * quality).sqrt(), 0.0)  # [B, n, C]
        best, index = value.flatten(1).topk(ROWS, dim=1)
        anchor = index // classes
        return Ranked(*(part.unsqueeze(1) for part in (best, index - anchor * classes, anchor)))


class TwoStages(nn.Module):
    """The best anchors first, then their scores."""

    def forward(self, logits: Tensor, centerness: Tensor) -> Ranked:
        """`logits` [B, C, h, w] and `centerness` [B, 1, h, w] → the level's best rows."""
        n = logits.shape[2] * logits.shape[3]
        quality = centerness.flatten(2).unsqueeze(1).sigmoid()
        level = logits.flatten(2).unsqueeze(1)
        found = best_of_large_levels([level], [quality], [AnchorRange(n, n)], [0], Scoring(), THRESHOLD, ROWS)
        return found._replace(value=final_scores(found.value, found.value, Scoring()))


def open_module(module: nn.Module, inputs: dict[str, np.ndarray], threads: int) -> onnxruntime.InferenceSession:
    """A session of a module, exported for inputs of these shapes."""
    with quiet_exporter():
        program = torch.onnx.export(
            module.eval(),
            tuple(torch.from_numpy(array) for array in inputs.values()),
            dynamo=True,
            opset_version=OPSET,
            input_names=list(inputs),
            output_names=list(Ranked._fields),
            verbose=False,
        )
    assert program is not None
    stream = io.BytesIO()
    program.save(stream)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(stream.getvalue(), options, providers=["CPUExecutionProvider"])


def check_equal(one: list[np.ndarray], two: list[np.ndarray]) -> None:
    """Raise AssertionError unless both found the same scores, and the same rows in any order of nearly equal ones."""
    np.testing.assert_allclose(one[0], two[0], rtol=1e-6)
    for image in range(len(one[0])):
        rows = [
            {(*row,) for row in np.concatenate(found[1:], axis=1)[image][:, found[0][image, 0] > 0].T.tolist()}
            for found in (one, two)
        ]
        assert rows[0] == rows[1], f"image {image}: {len(rows[0] ^ rows[1])} rows differ"


def main() -> int:
    """Measure and print the ratio."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cells", type=int, nargs=2, default=(100, 168), metavar=("H", "W"))
    parser.add_argument("--classes", type=int, default=80)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=31)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    random = np.random.default_rng(0)
    height, width = options.cells
    shape = (options.batch, options.classes, height, width)
    inputs = {
        # Some 2000 of 1.34 million scores exceed the threshold of 0.05: more than are wanted.
        "logits": random.normal(-5.95, 1, shape).astype(np.float32),
        "centerness": random.normal(0, 1, (options.batch, 1, height, width)).astype(np.float32),
    }
    one, two = (open_module(module, inputs, options.threads) for module in (OneStage(), TwoStages()))
    seconds: dict[str, list[float]] = {"one stage": [], "two stages": []}
    for round_number in range(options.rounds + 1):
        times = [time.perf_counter()]
        all_at_once = one.run(None, inputs)
        times.append(time.perf_counter())
        in_stages = two.run(None, inputs)
        times.append(time.perf_counter())
        check_equal(all_at_once, in_stages)
        if round_number:  # the first warms up
            for values, spent in zip(seconds.values(), np.diff(times).tolist(), strict=True):
                values.append(spent)
    ratio = statistics.median(a / b for a, b in zip(*seconds.values(), strict=True))
    machine = {"processor": str(read_processor()), "load": describe_machine().load_average}
    conditions = {"level": list(shape), "rows": ROWS, "threads": options.threads, "rounds": options.rounds}
    conditions |= {"onnxruntime": onnxruntime.__version__, "used_rows": int((in_stages[0] > 0).sum()), **machine}
    print(", ".join(f"{name} {value}" for name, value in conditions.items()))
    for name, values in seconds.items():
        print(f"{name}: {statistics.median(values) * 1e3:.2f} ms")
    print(f"two stages are {ratio:.2f} × as fast")
    if options.json is not None:
        found = {"conditions": conditions, "milliseconds": {n: statistics.median(v) * 1e3 for n, v in seconds.items()}}
        atomic_write(options.json, json.dumps(found | {"ratio": ratio}, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
