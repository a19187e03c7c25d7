"""A real Ray on this machine: nothing is lost or doubled when an actor is killed, and numbers are one process's."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import pytest

from runtime.cluster.connection import ClusterError, connected
from runtime.cluster.options import ClusterOptions
from runtime.cluster.pool import RETRIES, Pool, run_tasks
from runtime.coco import CocoDataset, load_coco, load_coco_with_truth, score
from runtime.coco.cluster import detect_on_cluster
from runtime.coco.command import main as evaluate
from runtime.coco.run import RunSettings, detect_dataset
from runtime.detect import main as detect
from runtime.detector import Detector
from runtime.errors import UserError
from runtime.model_spec import ModelSpec
from tests.support.cluster_jobs import MARK, Doubling, Dying, actor_processes
from tests.support.fakes import red_image

pytest.importorskip("ray", reason="pip install 'atss-toolkit[ray]'")
pytest.importorskip("ray.data", reason="pip install 'atss-toolkit[ray]'")
pytestmark = [
    pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds the actors in /proc"),
    pytest.mark.filterwarnings("ignore"),  # Ray's own
]
ROOT = Path(__file__).parents[3]
IMAGES = 500
CPU = {"backend": "cpu", "threads": 1}


@pytest.fixture(scope="module")
def ray() -> Iterator[Any]:
    """One Ray for all tests here: starting it takes seconds. Its processes are known by a mark."""
    os.environ[MARK] = uuid.uuid4().hex
    with connected("local") as module:
        yield module
    del os.environ[MARK]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> CocoDataset:
    """Red rectangles, whose annotations are more or less beside them, so that the AP is no round number."""
    folder = tmp_path_factory.mktemp("five_hundred")
    (folder / "images").mkdir()
    content: dict[str, Any] = {"images": [], "annotations": [], "categories": [{"id": 7, "name": "red"}]}
    for number in range(IMAGES):
        height, width = ((60, 80), (80, 60), (120, 160))[number % 3]
        x1, y1, x2, y2 = 8, 10 + number % 7, width - 8 - number % 5, height - 4
        cv2.imwrite(str(folder / "images" / f"{number}.png"), red_image(height, width, (x1, y1, x2, y2))[..., ::-1])
        content["images"].append({"id": 3 * number, "file_name": f"{number}.png", "height": height, "width": width})
        box = [x1 + number % 9, y1, x2 - x1, y2 - y1 - number % 11]
        content["annotations"].append(
            {"id": number, "image_id": 3 * number, "category_id": 7, "bbox": box, "area": 900, "iscrowd": 0}
        )
    (folder / "images" / "77.png").write_bytes(b"")
    (folder / "set.json").write_text(json.dumps(content))
    return load_coco(folder / "set.json", folder / "images")


def kill_one_actor() -> int:
    """Kill an actor's process; its number."""
    give_up = time.monotonic() + 60
    while not (found := actor_processes(os.environ[MARK])):
        assert time.monotonic() < give_up
        time.sleep(0.05)
    os.kill(found[0], signal.SIGKILL)
    return found[0]


def test_an_actor_is_killed_in_the_middle_and_the_ap_is_that_of_one_process(
    ray: Any, model: Path, dataset: CocoDataset
) -> None:
    with Detector(model, **CPU) as detector:
        alone = detect_dataset(detector, dataset, RunSettings(batch=4))
    done, killed = [0], list[tuple[int, int]]()

    def progress(images: int) -> None:
        done[0] += images
        if not killed:
            killed.append((done[0], kill_one_actor()))

    together = detect_on_cluster(
        ModelSpec(model),
        dataset,
        ClusterOptions(actors=2),
        lambda _: RunSettings(batch=4),
        options=CPU,
        progress=progress,
    )
    ((at, pid),) = killed
    assert 0 < at < IMAGES / 2, "else nothing was under way"
    assert pid not in actor_processes(os.environ[MARK])
    assert done == [IMAGES]
    assert together.image_ids == alone.image_ids
    assert len(together.image_ids) == IMAGES - 1
    assert list(together.results) == list(alone.results)
    assert [line.split(": ")[1] for line in together.speed.skipped] == ["the file is empty; copy or download it again"]
    _, truth = load_coco_with_truth(dataset.json_path, dataset.root)
    first, second = (score(truth, run.results, run.image_ids) for run in (alone, together))
    assert first == second
    assert 0.1 < first.values["AP"] < 0.9


def test_the_commands_give_what_they_give_alone(
    ray: Any, model: Path, dataset: CocoDataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shared = ["--backend", "cpu", "--threads", "1"]
    given = [str(model), "--annotations", str(dataset.json_path), "--images", str(dataset.root), *shared]
    given += ["--limit", "30", "--batch", "4"]
    for name, more in {"alone": [], "ray": ["--ray", "--actors", "2"]}.items():
        assert evaluate([*given, "--results-out", str(tmp_path / f"{name}.json"), *more]) == 0
    assert (tmp_path / "ray.json").read_bytes() == (tmp_path / "alone.json").read_bytes()
    assert "on 2 actors" in capsys.readouterr().out
    names = [str(dataset.path(number)) for number in (*range(70, 79), 5, 3)]
    (tmp_path / "list.txt").write_text("\n".join([*names, str(tmp_path / "none.png"), ""]), encoding="utf-8")
    for name, more in {"one": ["--json-only"], "two": ["--ray"]}.items():
        listed = [str(model), str(tmp_path / "list.txt"), "-o", str(tmp_path / name), *shared, "--jsonl"]
        assert detect([*listed, str(tmp_path / f"{name}.jsonl"), *more]) == 0
    assert (tmp_path / "two.jsonl").read_bytes() == (tmp_path / "one.jsonl").read_bytes()
    one, two = (json.loads((tmp_path / name / "detections.json").read_text()) for name in ("one", "two"))
    assert two == one
    assert [row["file"] for row in two["images"]] == [name for name in names if not name.endswith("77.png")]
    assert len(two["skipped"]) == 2
    assert list((tmp_path / "two").iterdir()) == [tmp_path / "two" / "detections.json"]


def test_the_nodes_cut_images_into_tiles(
    ray: Any, model: Path, dataset: CocoDataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cut = ["--backend", "cpu", "--threads", "1", "--tiles", "48", "--max-megapixels", "0.015"]  # some in strips
    given = [str(model), "--annotations", str(dataset.json_path), "--images", str(dataset.root), "--limit", "30"]
    paths = [str(dataset.path(number)) for number in (*range(72, 79), 5, 3)]
    for name, more in {"alone": [], "ray": ["--ray", "--actors", "2"]}.items():
        assert evaluate([*given, *cut, *more, "--results-out", str(tmp_path / f"{name}.json")]) == 0
        how = more or ["--json-only"]
        assert detect([str(model), *paths, "-o", str(tmp_path / name), *cut, *how]) == 0
    assert (tmp_path / "ray.json").read_bytes() == (tmp_path / "alone.json").read_bytes()
    alone, on_ray = (json.loads((tmp_path / name / "detections.json").read_text()) for name in ("alone", "ray"))
    assert on_ray == alone
    assert max(len(row["detections"]) for row in alone["images"]) > 1, "a rectangle longer than a tile is several"
    capsys.readouterr()


def test_images_inside_parquet_files(ray: Any, model: Path, dataset: CocoDataset, tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    paths = [str(dataset.path(number)) for number in range(70, 80)]
    images = [{"path": path, "bytes": Path(path).read_bytes()} for path in paths]
    pyarrow.parquet.write_table(
        pyarrow.Table.from_pylist([{"image": image, "label": 1} for image in images]), tmp_path / "a.parquet", 4
    )
    pyarrow.parquet.write_table(
        pyarrow.Table.from_pylist([{"bytes": image["bytes"]} for image in images]), tmp_path / "b.parquet", 4
    )
    pyarrow.parquet.write_table(pyarrow.table({"path": paths}), tmp_path / "c.parquet", 4)
    rows = {}
    for name in "abc":
        out = tmp_path / f"out_{name}"
        command = [str(model), str(tmp_path / f"{name}.parquet"), "-o", str(out), "--backend", "cpu"]
        how = "--json-only" if name == "c" else "--ray"  # names alone need no cluster
        assert detect([*command, how, "--parquet", str(out / "found.parquet")]) == 0
        content = json.loads((out / "detections.json").read_text())
        assert [entry["reason"].split(": ")[1] for entry in content["skipped"]] == [
            "the file is empty; copy or download it again"
        ]
        written = pyarrow.parquet.read_table(out / "found.parquet").to_pylist()
        assert [row["file"] for row in written if row["reason"]] == [e["file"] for e in content["skipped"]]
        assert [
            {key: value for key, value in row.items() if value is not None} for row in written if not row["reason"]
        ] == content["images"]
        rows[name] = content["images"]
    assert rows["a"] == rows["c"]
    assert [row["file"] for row in rows["b"]] == [f"b[{number}]" for number in range(10) if number != 7]
    assert [{**row, "file": ""} for row in rows["b"]] == [{**row, "file": ""} for row in rows["a"]]


def test_a_bad_model_a_missing_gpu_and_a_bad_task_are_one_line_each(ray: Any, model: Path, tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), red_image())
    common = [str(tmp_path / "a.png"), "-o", str(tmp_path / "out"), "--ray"]
    with pytest.raises(UserError, match=r"none\.onnx: cannot read the model: No such file or directory; check"):
        detect([str(tmp_path / "none.onnx"), *common])
    if "GPU" not in ray.cluster_resources():
        with pytest.raises(ClusterError, match="the Ray cluster has no GPU"):
            detect([str(model), *common, "--backend", "cuda"])
    assert not (tmp_path / "out" / "detections.json").exists()
    pool = Pool(1, 0, 0.5)
    assert list(run_tasks(ray, pool, Doubling(), [1, 2, 3])) == ["2", "4", "6"]
    with pytest.raises(UserError, match=r"^bad: not a number$"):
        list(run_tasks(ray, pool, Doubling("bad"), [1, "bad", 3]))
    with pytest.raises(UserError, match=r"^no detector\nhere$"):
        list(run_tasks(ray, pool, Doubling(opens=False), [1]))


def test_a_process_that_dies_inside_a_task_does_the_task_again(ray: Any, tmp_path: Path) -> None:
    job = Dying(2, tmp_path / "died")
    assert list(run_tasks(ray, Pool(2, 0, 0.5), job, range(6))) == [str(number) for number in range(6)]
    assert (tmp_path / "died").exists()


@pytest.mark.slow
def test_a_task_that_kills_every_actor_ends_the_run(ray: Any) -> None:
    with pytest.raises(ClusterError, match=f"lost a process or a node {RETRIES + 1} times at the same task") as raised:
        list(run_tasks(ray, Pool(1, 0, 0.5), Dying(1), [0, 1, 2]))
    assert "\n" not in str(raised.value)


@pytest.mark.slow
def test_a_node_is_lost_in_the_middle_and_nothing_comes_back_in_its_place() -> None:
    """In a process of its own, since a process has one connection to Ray."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tests.support.lost_node"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == " ".join(map(str, range(24)))
    assert "warning: Ray lost a process or a node; going on at task" in done.stderr
    assert "Traceback" not in done.stderr
