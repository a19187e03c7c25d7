"""`evaluate --report` with each option of `evaluate`: the figures are those of the same run, or one line refuses."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from runtime.cluster.options import ClusterOptions
from runtime.coco import METRIC_NAMES, CocoDataset, command
from runtime.coco.run import DatasetRun, RunSettings, detect_dataset
from runtime.coco.scored import Scoring
from runtime.manifest import Manifest
from runtime.model_spec import ModelSpec, open_model
from runtime.report.collect import Wishes, collect
from runtime.report.content import ReportContent
from runtime.report.write import write_report
from runtime.tta import TtaSettings

from ..coco.test_evaluate import make_dataset

pytest.importorskip("jinja2", reason="the page's library")
pytest.importorskip("matplotlib", reason="the page's colours")

QUICK = Wishes(resamples=0)


@pytest.fixture
def dataset(tmp_path: Path) -> CocoDataset:
    return make_dataset(tmp_path)


def data_of(dataset: CocoDataset) -> tuple[object, ...]:
    return ("--annotations", dataset.json_path, "--images", dataset.root)


def evaluated(folder: Path, *arguments: object) -> ReportContent:
    """The content of the report that the command writes; its figures are those that the command writes as JSON."""
    found: list[ReportContent] = []

    def write(path: Path, scoring: Scoring, _: Sequence[str] | None) -> None:
        found.append(collect(scoring, QUICK))
        write_report(path, scoring, QUICK)

    out, figures = folder / "report.html", folder / "metrics.json"
    command.main([*map(str, arguments), "--json", str(figures), "--report", str(out)], write)
    assert out.read_text(encoding="utf-8").rstrip().endswith("</html>")
    (content,) = found
    expected = json.loads(figures.read_text())
    model = content.models[0]
    assert {name: model.metrics[name].value for name in METRIC_NAMES} == {name: expected[name] for name in METRIC_NAMES}
    assert {name: one.value for name, one in model.per_class.items()} == expected["per_class"]
    assert content.data.images == expected["images"]
    return content


@pytest.mark.parametrize(
    "more",
    [
        ("--classes", "red"),
        ("--score", "0.3"),
        ("--limit", "3", "--batch", "2"),
        ("--results-out", "{folder}/r.json"),
        ("--scales", "24", "48", "--flip"),
        ("--tiles", "32", "--overlap", "0.5"),
    ],
    ids=lambda more: more[0],
)
def test_options_of_a_model(dataset: CocoDataset, model: Path, tmp_path: Path, more: tuple[str, ...]) -> None:
    given = [one.format(folder=tmp_path) for one in more]
    content = evaluated(tmp_path, model, *data_of(dataset), *given)
    assert content.models[0].detections > 0
    if more[0] == "--results-out":
        again = evaluated(tmp_path, "--results", tmp_path / "r.json", *data_of(dataset)[:2])
        assert again.models[0].metrics == content.models[0].metrics
        assert again.models[0].manifest is None


def test_parts_are_reported_on_together(
    dataset: CocoDataset, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parts = [tmp_path / f"{number}.json" for number in range(2)]
    part = [str(model), *map(str, data_of(dataset)), "--batch", "2", "--shard"]
    for number, path in enumerate(parts):
        command.main([*part, f"{number}/2", "--results-out", str(path)])
    merged = evaluated(tmp_path, "--results", *parts, *data_of(dataset))
    assert merged.models[0].metrics == evaluated(tmp_path, model, *data_of(dataset)).models[0].metrics
    capsys.readouterr()
    with pytest.raises(SystemExit):
        command.main(
            [*part, "0/2", "--results-out", str(tmp_path / "p.json"), "--report", str(tmp_path / "p.html")],
            lambda *_: None,
        )
    assert "the parts are scored together" in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "p.html").exists()


def test_a_run_on_a_cluster(dataset: CocoDataset, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def detect_here(
        spec: ModelSpec,
        dataset: CocoDataset,
        cluster: ClusterOptions,
        settings: Callable[[Manifest], RunSettings],
        tta: TtaSettings,
        options: dict[str, Any],
        progress: Callable[[int], object],
    ) -> DatasetRun:
        with open_model(spec, **options) as detector:
            return detect_dataset(detector, dataset, settings(detector.manifest))

    monkeypatch.setattr(command, "detect_on_cluster", detect_here)  # a cluster's run, without the cluster
    content = evaluated(tmp_path, model, *data_of(dataset), "--ray")
    assert content.models[0].name == model.name
    assert content.models[0].metrics == evaluated(tmp_path, model, *data_of(dataset)).models[0].metrics
