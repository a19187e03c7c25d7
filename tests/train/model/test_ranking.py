"""The ranking of levels in one stage and in two, against a sort of every score."""

from __future__ import annotations

import io
from itertools import product

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor

from export.graph.checkpoint import quiet_exporter
from export.graph.translation import OPSET
from train.model.ranking import AnchorRange, Ranked, Scoring, best_of_large_levels, best_of_level, final_scores

ROWS, THRESHOLD = 20, 0.3
SCORINGS = [
    Scoring(combine, cut, rank)  # type: ignore[arg-type]
    for combine, cut, rank in product(("sqrt", "product"), ("class", "final"), ("class", "final"))
]
Row = tuple[float, int, int]  # value ranked by, class, anchor


def level_of(anchors: int, classes: int, batch: int = 2, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Logits [B, 1, C, n] and qualities [B, 1, 1, n]."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(batch, 1, classes, anchors, generator=generator) * 2 - 1
    return logits, torch.rand(batch, 1, 1, anchors, generator=generator)


def slow(logits: Tensor, quality: Tensor | None, scoring: Scoring, image: int, start: int = 0) -> list[Row]:
    """Every score of a level that exceeds the threshold, best first, and its final score in place of the class."""
    found = []
    for label, anchor in product(range(logits.shape[2]), range(logits.shape[3])):
        class_score = float(logits[image, 0, label, anchor].sigmoid())
        final = class_score
        if quality is not None:
            final = class_score * float(quality[image, 0, 0, anchor])
            final = final**0.5 if scoring.combine == "sqrt" else final
        if (class_score if scoring.threshold_on == "class" else final) > THRESHOLD:
            found.append((class_score if scoring.rank_by == "class" else final, final, label, start + anchor))
    return sorted(found, key=lambda row: -row[0])[:ROWS]


def check(
    ranked: Ranked, levels: list[tuple[Tensor, Tensor | None]], scoring: Scoring, rows: list[int] | None = None
) -> None:
    """The rows of every level are the slow loop's, and the rest is unused."""
    batch, first, start = len(levels[0][0]), 0, 0
    for number, (logits, quality) in enumerate(levels):
        part = slice(first, first + (rows[number] if rows else ROWS))
        for image in range(batch):
            expected = slow(logits, quality, scoring, image, start)
            used = len(expected)
            value, label, anchor = (field[image, 0, part] for field in ranked)
            assert label[:used].tolist() == [row[2] for row in expected]
            assert anchor[:used].tolist() == [row[3] for row in expected]
            assert (value[:used] > 0).all()
            assert (value[used:] == 0).all()
            own = None if quality is None else quality[image, 0, 0, anchor - start]
            final = final_scores(value, own, scoring)[:used]
            torch.testing.assert_close(final, torch.tensor([row[1] for row in expected]))
        first, start = part.stop, start + logits.shape[3]


def in_two_stages(
    levels: list[tuple[Tensor, Tensor | None]], scoring: Scoring, ranges: list[AnchorRange] | None = None
) -> Ranked:
    logits = [level for level, _ in levels]
    qualities = [quality for _, quality in levels if quality is not None]
    counts = [level.shape[3] for level in logits]
    starts = [sum(counts[:i]) for i in range(len(counts))]
    ranges = ranges or [AnchorRange(count, count) for count in counts]
    return best_of_large_levels(logits, qualities, ranges, starts, scoring, THRESHOLD, ROWS)


def in_one_stage(logits: Tensor, quality: Tensor | None, scoring: Scoring) -> Ranked:
    count = logits.shape[3]
    return best_of_level(logits, quality, AnchorRange(count, count), 0, scoring, THRESHOLD, ROWS)


@pytest.mark.parametrize("scoring", SCORINGS, ids=lambda scoring: "-".join(vars(scoring).values()))
def test_nothing_exceeds_the_threshold(scoring: Scoring) -> None:
    logits, quality = level_of(50, 3)
    for ranked in (in_two_stages([(logits - 50, quality)], scoring), in_one_stage(logits - 50, quality, scoring)):
        assert (ranked.value == 0).all()
        assert (final_scores(ranked.value, torch.rand_like(ranked.value), scoring) == 0).all()


@pytest.mark.parametrize("scoring", SCORINGS, ids=lambda scoring: "-".join(vars(scoring).values()))
@pytest.mark.parametrize("with_quality", [True, False])
def test_both_equal_the_sort_of_every_score(scoring: Scoring, with_quality: bool) -> None:
    """With few anchors of many good classes, and with many anchors of one."""
    levels = [level_of(count, classes, seed=count) for count, classes in ((300, 4), (21, 4), (40, 4))]
    kept = [(logits, quality if with_quality else None) for logits, quality in levels]
    check(in_two_stages(kept, scoring), kept, scoring)
    for logits, quality in kept:
        check(in_one_stage(logits, quality, scoring), [(logits, quality)], scoring)


@pytest.mark.parametrize("scoring", SCORINGS, ids=lambda scoring: "-".join(vars(scoring).values()))
def test_one_anchor_has_all_the_best(scoring: Scoring) -> None:
    """Twenty classes of one anchor exceed all others: the first stage must not stop at one score an anchor."""
    logits, quality = level_of(60, 25)
    logits -= 8
    logits[:, :, :, 7] = torch.linspace(2, 6, 25)
    quality[..., 7] = 1.0
    ranked = in_two_stages([(logits, quality)], scoring)
    assert (ranked.anchor == 7).all()
    check(ranked, [(logits, quality)], scoring)


@pytest.mark.parametrize("anchors", [3, 19, 20, 21, 60])
@pytest.mark.parametrize("scoring", SCORINGS[:3], ids=lambda scoring: "-".join(vars(scoring).values()))
def test_a_graph_for_larger_levels(anchors: int, scoring: Scoring) -> None:
    """Levels smaller than the rows that a graph ranks: each anchor is found once, and the rest is unused."""
    levels: list[tuple[Tensor, Tensor | None]] = [level_of(anchors, 4, seed=1), level_of(anchors, 4, seed=2)]
    check(in_two_stages(levels, scoring, [AnchorRange(3, 60)] * 2), levels, scoring)


def test_equal_scores_have_an_order_in_onnx() -> None:
    """The lower class first, then the anchor that ranks higher by its best class, then the lower anchor."""
    random = np.random.default_rng(0)
    logits = random.integers(-1, 3, (2, 1, 5, 90)).astype(np.float32)  # four values: a level full of ties

    class Stages(torch.nn.Module):
        def forward(self, logits: Tensor) -> tuple[Ranked, Ranked]:
            return in_two_stages([(logits, None)], Scoring()), in_one_stage(logits, None, Scoring())

    with quiet_exporter():
        program = torch.onnx.export(
            Stages().eval(), (torch.from_numpy(logits),), dynamo=True, opset_version=OPSET, verbose=False
        )
    stream = io.BytesIO()
    program.save(stream)
    session = onnxruntime.InferenceSession(stream.getvalue(), providers=["CPUExecutionProvider"])
    outputs = session.run(None, {session.get_inputs()[0].name: logits})
    two, one = Ranked(*outputs[:3]), Ranked(*outputs[3:])
    for image in range(2):
        scores = logits[image, 0]  # [C, n]
        rows = [(label, anchor) for label in range(5) for anchor in range(90) if scores[label, anchor] >= 0]
        by_index = sorted(rows, key=lambda row: (-scores[row], row))[:ROWS]
        assert list(zip(one.label[image, 0].tolist(), one.anchor[image, 0].tolist(), strict=True)) == by_index
        first = sorted(range(90), key=lambda anchor: (-scores[:, anchor].max(), anchor))[:ROWS]
        rows = [(label, anchor) for label in range(5) for anchor in first if scores[label, anchor] >= 0]
        by_stage = sorted(rows, key=lambda row: (-scores[row], row[0], first.index(row[1])))[:ROWS]
        assert list(zip(two.label[image, 0].tolist(), two.anchor[image, 0].tolist(), strict=True)) == by_stage
