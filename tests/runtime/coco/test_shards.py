"""One model, evaluated in parts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from runtime.coco import CocoDataset, load_coco
from runtime.coco.command import main
from runtime.coco.shards import ShardError, parse_part, parse_shard
from runtime.detector import Detector
from runtime.errors import UserError
from runtime.images import ImageError

from .test_evaluate import make_dataset
from .test_evaluate_several import SIZES, arguments, run


@pytest.fixture
def dataset(tmp_path: Path) -> CocoDataset:
    return make_dataset(tmp_path, SIZES)


def parts(dataset: CocoDataset, model: Path, folder: Path, count: int, *more: object) -> list[Path]:
    paths = [folder / f"part{index}.json" for index in range(count)]
    for index, path in enumerate(paths):
        options = ["--shard", f"{index}/{count}", "--results-out", path, "--batch", 2, *more]
        assert main([str(model), *arguments(dataset, *options)]) == 0
    return paths


def merged(dataset: CocoDataset, paths: Sequence[Path], *more: object) -> int:
    return main(["--annotations", str(dataset.json_path), "--results", *map(str, paths), *map(str, more)])


@pytest.mark.parametrize("count", [1, 2, 3, 40])
def test_merged_parts_are_the_whole_bit_for_bit(
    dataset: CocoDataset, models: dict[str, Path], tmp_path: Path, count: int
) -> None:
    dataset.path(2).write_bytes(b"")  # one that can't be read, in the middle of a batch
    whole = run(dataset, tmp_path / "whole.json", models["fp32"], "--results-out", tmp_path / "whole_results.json")
    paths = parts(dataset, models["fp32"], tmp_path, count)
    given = list(reversed(paths))
    out, results = tmp_path / "merged.json", tmp_path / "merged_results.json"
    assert merged(dataset, given, "--json", out, "--results-out", results) == 0
    figures = json.loads(out.read_text())
    timing = {"images_per_second", "network_images_per_second", "network_seconds"}
    assert {k: v for k, v in figures.items() if k not in timing} == {k: v for k, v in whole.items() if k not in timing}
    assert figures["images"] == len(SIZES) - 1
    assert figures["skipped"] == 1
    assert results.read_bytes() == (tmp_path / "whole_results.json").read_bytes()
    read = [parse_part(json.loads(path.read_text(encoding="utf-8")), path) for path in paths]
    assert sum(len(part.run.image_ids) for part in read) == len(SIZES) - 1
    if count in (2, 3):
        assert min(len(part.run.image_ids) for part in read) > 1


def test_classes_are_chosen_when_parts_are_merged_or_models_compared(
    dataset: CocoDataset, models: dict[str, Path], tmp_path: Path
) -> None:
    out = tmp_path / "f.json"
    assert merged(dataset, parts(dataset, models["fp32"], tmp_path, 2), "--json", out, "--classes", 7) == 0
    alone = run(dataset, tmp_path / "alone.json", models["fp32"], "--classes", "red")
    assert json.loads(out.read_text())["per_class"] == alone["per_class"]
    together = run(dataset, tmp_path / "all.json", models["fp32"], models["fp16"], "--classes", 7)["artifacts"]
    assert together[0]["per_class"] == alone["per_class"]
    for option in (["--classes", 7], ["--score", 0.5]):
        with pytest.raises(UserError, match="filtered when the parts are scored; give the filter with --results"):
            parts(dataset, models["fp32"], tmp_path, 2, *option)


def change(path: Path, **fields: object) -> None:
    """Alter a part's head; a name with a dot goes into the origin."""
    content = json.loads(path.read_text())
    for name, value in fields.items():
        where = content["shard"]["origin"] if name in content["shard"]["origin"] else content["shard"]
        where[name] = value
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"artifact_sha256": "0" * 64}, r"part1.json: a part with another model than .*part0.json; merge parts of one"),
        ({"annotations_sha256": "0" * 64}, r"part1.json: a part with another data set than .*part0"),
        ({"batch": 8}, r"part1.json: a part with another batch \(8 and 2\) than"),
        ({"limit": 3}, r"another limit \(3 and None\)"),
        ({"flip": True}, r"another flip \(True and False\)"),
        ({"scales": [64]}, r"another scales \(\(64,\) and \(\)\)"),
        ({"count": 4}, r"part1.json: one of 4 parts, but .*part0.json is one of 3"),
        ({"index": 0}, r"part1.json and .*part0.json are both part 0/3; give each once"),
        ({"version": 2}, "a part of another version of this toolkit; evaluate the shard again"),
        ({"extra": 1}, "unknown field 'extra'; evaluate the shard again"),
        ({"index": "1"}, "field 'index' is a text"),
        ({"image_ids": [1, 1]}, "field 'image_ids' is a list .1, 1., expected .* distinct values"),
        ({"image_ids": [1, 10**30]}, "field 'image_ids.1.' is a number"),
        ({"count": 10**9}, "field 'count' is a number .1000000000., expected at least 0 and at most 1000000"),
        ({"count": 10**400}, "field 'count' is a number .1000"),
        ({"index": 3}, "field 'index' is a number .3., expected less than count, here 3"),
        ({"seconds": 10**400}, "field 'seconds' is a number .1000.* expected float"),
        ({"batch": -1}, "field 'origin.batch' is a number"),
        ({"image_ids": [77]}, "results of image 1, which the part did not run"),
        ({"image_ids": [*range(1, 12), 77]}, "images occur twice, or are not the data set's"),
    ],
)
def test_a_foreign_or_altered_part_is_refused(
    dataset: CocoDataset, models: dict[str, Path], tmp_path: Path, fields: dict, message: str
) -> None:
    paths = parts(dataset, models["fp32"], tmp_path, 3)
    assert merged(dataset, paths) == 0
    change(paths[1], **fields)
    with pytest.raises(ShardError, match=message):
        merged(dataset, paths)


def test_missing_doubled_and_truly_foreign_parts(dataset: CocoDataset, models: dict[str, Path], tmp_path: Path) -> None:
    paths = parts(dataset, models["fp32"], tmp_path, 3)
    with pytest.raises(ShardError, match="1 of 3 parts are missing: 1/3; evaluate or add them"):
        merged(dataset, [paths[0], paths[2]])
    with pytest.raises(ShardError, match="2 of 3 parts are missing: 0/3, 2/3"):
        merged(dataset, [paths[1]])
    with pytest.raises(ShardError, match="are both part 0/3"):
        merged(dataset, [*paths, paths[0]])
    (tmp_path / "half").mkdir()
    foreign = parts(dataset, models["fp16"], tmp_path / "half", 3)
    with pytest.raises(ShardError, match="a part with another model than"):
        merged(dataset, [*paths[:2], foreign[2]])
    other = make_dataset(tmp_path / "another", SIZES, first_id=50)
    with pytest.raises(ShardError, match=r"a part with other annotations than .*set\.json"):
        merged(other, paths)
    plain = tmp_path / "plain.json"
    plain.write_text("[]")
    with pytest.raises(ShardError, match=r"plain\.json: not a part of an evaluation; expected a file that --shard"):
        merged(dataset, [paths[0], plain])
    content = json.loads(paths[1].read_text())
    paths[1].write_text(json.dumps({**content, "results": [{"image_id": 1}]}))
    with pytest.raises(ShardError, match=r"result 1 of 1 .*; evaluate the shard again"):
        merged(dataset, paths)
    paths[1].write_text(json.dumps(content)[:-20])
    with pytest.raises(UserError, match="not valid JSON"):
        merged(dataset, paths)


def test_parts_without_a_readable_image(dataset: CocoDataset, models: dict[str, Path], tmp_path: Path) -> None:
    for index in range(len(SIZES)):
        dataset.path(index).write_bytes(b"")
    paths = parts(dataset, models["fp32"], tmp_path, 2)
    with pytest.raises(ImageError, match=f"none of the {len(SIZES)} images could be read"):
        merged(dataset, paths)


@pytest.mark.parametrize("text", ["", "1", "2/2", "-1/2", "1/0", "a/b", "0/2/3", "0.5/2"])
def test_shards_that_make_no_sense(text: str) -> None:
    with pytest.raises(ShardError, match=r"expected i/n with i from 0 to n − 1"):
        parse_shard(text)


def test_parse_shard() -> None:
    assert parse_shard("0/1") == (0, 1)
    assert parse_shard("11/12") == (11, 12)


def test_a_model_that_is_replaced_while_it_opens_is_refused(
    dataset: CocoDataset, models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from runtime import model_spec

    path = tmp_path / "model.onnx"
    path.write_bytes(models["fp32"].read_bytes())
    open_model = model_spec.open_model

    def replaced_meanwhile(*arguments: Any, **options: Any) -> Detector:
        other = tmp_path / "other.onnx"
        other.write_bytes(models["fp16"].read_bytes())
        os.replace(other, path)
        return open_model(*arguments, **options)

    monkeypatch.setattr(model_spec, "open_model", replaced_meanwhile)
    with pytest.raises(UserError, match="the file was replaced while it was being opened; run again"):
        parts(dataset, path, tmp_path, 1)


def test_a_disk_that_fills_up_is_one_line(
    dataset: CocoDataset, models: dict[str, Path], tmp_path: Path, repository: Path
) -> None:
    pytest.importorskip("resource", reason="limits the size of files")
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (200, 200))\n"
    code = limit + "import runpy; runpy.run_module('runtime.evaluate', run_name='__main__')"
    for more in (["--results-out", tmp_path / "r.json"], ["--shard", "0/2", "--results-out", tmp_path / "r.json"]):
        done = subprocess.run(
            [sys.executable, "-c", code, str(models["fp32"]), *arguments(dataset, *more)],
            cwd=repository,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 2
        assert done.stderr.startswith(f"error: cannot write {tmp_path / 'r.json'}: File too large")
        assert done.stderr.count("\n") == 1
        assert not (tmp_path / "r.json").exists()


def test_load_coco_reads_what_the_parts_name(dataset: CocoDataset) -> None:
    assert load_coco(dataset.json_path, dataset.root).image_ids.tolist() == list(range(1, len(SIZES) + 1))


def test_a_file_name_that_is_no_utf8_comes_back_from_a_part(tmp_path: Path, models: dict[str, Path]) -> None:
    dataset = make_dataset(tmp_path, SIZES)
    content = json.loads(dataset.json_path.read_text())
    content["images"][0]["file_name"] = "gone\udce9.jpg"
    dataset.json_path.write_text(json.dumps(content))
    path = tmp_path / "part.json"
    options = ["--shard", "0/1", "--results-out", path, "--batch", 2]
    assert main([str(models["fp32"]), *arguments(dataset, *options)]) == 0
    (line,) = parse_part(json.loads(path.read_text(encoding="utf-8")), path).head.skipped
    assert "gone\udce9.jpg" in line
