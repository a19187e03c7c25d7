"""What the measurement of training options makes of its runs' results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import training_options
from benchmarks.training_options import RARE, VARIANTS, jobs, read_results, stopped, table, write_subsets
from train import shapes
from train.trainer.stopping import BestAp


def result(variant: str, seed: int, ap: float, data: str = "tail") -> dict[str, Any]:
    curve = [(10 * (i + 1), ap * min(1.0, (i + 1) / 3)) for i in range(10)]
    metrics = {"AP": ap, "AP50": ap, "APs": ap}
    names = ("Platelets",) if data == "bccd" else RARE
    row = {"data": data, "variant": variant, "seed": seed, "metrics": metrics, "curve": curve, "cpu_seconds": 8.0}
    return {**row, "per_class": dict.fromkeys(names, ap / 2)}


def test_no_results_make_an_empty_table(tmp_path: Path) -> None:
    assert read_results(tmp_path) == []
    assert [line for line in table([]) if "±" in line] == []


def test_the_table_has_mean_and_spread_of_the_seeds(tmp_path: Path) -> None:
    rows = [result("plain", seed, ap) for seed, ap in enumerate((0.2, 0.3, 0.4))] + [result("repeat", 0, 0.5)]
    (tmp_path / "results.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    lines = list(table(read_results(tmp_path)))
    assert "| tail | plain | 30.0 ± 10.0 | 30.0 ± 10.0 | 30.0 ± 10.0 | 15.0 ± 5.0 | 3 | 8 |" in lines
    assert "| tail | repeat | 50.0 | 50.0 | 50.0 | 25.0 | 1 | 8 |" in lines
    assert "| tail | 2 of 10 | 50 % | 0.0 ± 0.0 |" in lines, "from step 30 on nothing is better"


@pytest.mark.parametrize("patience", [1, 2, 3, 20])
def test_it_stops_where_training_stops(patience: int) -> None:
    curve = [(step, ap) for step, ap in enumerate((0.1, 0.3, 0.2, 0.3, 0.4, 0.2, 0.2, 0.2, 0.5), start=1)]
    best, step = BestAp(-1.0, 0), 0
    for step, ap in curve:  # noqa: B007
        best.add(ap)
        if best.since >= patience:
            break
    assert stopped(curve, patience) == (step, best.ap)


def test_seeds_are_complete_one_after_the_other() -> None:
    names = [job.name for job in jobs(2)]
    assert len(set(names)) == len(names) == 2 * sum(map(len, VARIANTS.values()))
    assert [job.seed for job in jobs(2)] == sorted(job.seed for job in jobs(2))


def test_the_long_tail_has_few_images_of_its_rare_classes(tmp_path: Path) -> None:
    shapes.generate(tmp_path / "set", shapes.Settings(train=80, val=1, seed=1, size=64), progress=False)
    write_subsets(tmp_path / "set", tmp_path)
    whole, tail = (json.loads(path.read_text()) for path in (tmp_path / "set/train.json", tmp_path / "tail.json"))
    names = {category["id"]: category["name"] for category in tail["categories"]}

    def with_rare(content: dict[str, Any]) -> set[int]:
        return {a["image_id"] for a in content["annotations"] if names[a["category_id"]] in RARE}

    assert len(with_rare(tail)) == 20 < len(with_rare(whole))
    assert len(whole["images"]) - len(tail["images"]) == len(with_rare(whole)) - 20
    kept = {image["id"] for image in tail["images"]}
    assert [a for a in whole["annotations"] if a["image_id"] in kept] == tail["annotations"]


def test_runs_of_another_length_are_not_mixed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shapes.generate(tmp_path / "set", shapes.Settings(train=4, val=1, seed=1, size=64), progress=False)
    rows = [{**result("plain", 0, 0.2), "steps": 200}]
    (tmp_path / "results.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    started: list[training_options.Job] = []
    monkeypatch.setattr(training_options, "start", lambda job, options: started.append(job))
    call = ["x", "--out", str(tmp_path), "--shapes", str(tmp_path / "set"), "--seeds", "1"]
    monkeypatch.setattr("sys.argv", call)
    with pytest.raises(SystemExit):
        training_options.main()
    assert "has runs of another --share" in capsys.readouterr().err
    assert started == []
    monkeypatch.setattr("sys.argv", [*call, "--share", "0.5"])
    training_options.main()
    assert training_options.Job("tail", "repeat", 0) in started
    assert training_options.Job("tail", "plain", 0) not in started
