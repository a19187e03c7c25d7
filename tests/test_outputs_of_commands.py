"""No command replaces one of its inputs: every option that names an output is pointed at every input.

`WRITES` has an entry for each command and each option that names an output, so that a new one is not forgotten.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from itertools import product
from pathlib import Path
from typing import NamedTuple

import pytest

from runtime import cli
from runtime.manifest import Preprocess, Thresholds
from runtime.training_log import LOG
from train.config.recipes import atss_tiny
from train.tracking.trackers import IDS
from train.trainer.elastic import CLAIM
from train.trainer.start import BEST, LAST

from .runtime.coco.test_evaluate import make_dataset
from .support.fakes import write_red_onnx
from .support.systems import narrowed, saved

# The commands are started in this process, which has imported them already.
pytestmark = pytest.mark.filterwarnings("ignore:.*found in sys.modules after import of package:RuntimeWarning")


class Writes(NamedTuple):
    """An option that names an output, and what a command is given besides."""

    arguments: str  # {out}: the output, where it has no option of its own
    option: str  # "": it has none
    reads: str  # the inputs, by their names in `FILES`
    inside: str = ""  # files in the folder that the option names; nothing: it names a file


DATA = "--annotations val.json --images images"
COCO = "val.json image"
TRAIN = (
    "best.pt --data.train-json val.json --data.train-images images --data.val-json val2.json --data.val-images images2 "
    "--schedule.steps 1 --schedule.batch 1 --data.workers 0 --run.device cpu"
)
PUBLISHED = "mirror/atss_r50_fpn_1x_coco_20200209-985f7bd0.pth"
RUN = f"{LAST} {BEST} {LOG} {CLAIM} {IDS}"
WRITES = {
    "train": [Writes(TRAIN, "--out", "best.pt val.json image val2.json image2", RUN)],
    "inspect": [
        Writes("val.json --images images --val val2.json --val-images images2", option, "val.json image val2.json")
        for option in ("-o", "--json")
    ],
    "convert": [Writes("val.json", "-o", "val.json")],
    "validate": [Writes(f"best.pt {DATA}", "--json", f"best.pt {COCO}")],
    "plot": [Writes("{out}", "", "log.jsonl", "curves.png")],
    "show-assignment": [Writes(f"atss_tiny {DATA} --count 1", "--out", COCO, "assignment_1.png")],
    "show-batch": [Writes("atss_tiny --data.train-json val.json --data.train-images images", "-o", "val.json image")],
    "shapes": [Writes("{out} --train 1 --val 1 --force", "", "val.json")],
    "pretrained": [
        Writes("best.pt", "-o", "best.pt"),
        Writes("mm_atss_r50 --from mirror", "-o", PUBLISHED),
    ],
    "reproduce": [Writes("--out made --report", "--into", "made/backbone.pt", "reproduction.json reproduction.md")],
    "export": [
        Writes("best.pt --images images --calibrate-on images2", "-o", "best.pt image image2"),
        Writes(
            "best.pt -o given/m.onnx --precision int8 --calibrate-on images",
            "given",
            "best.pt",
            "m.onnx m.failed.onnx m.int8.onnx m.int8.failed.onnx m.calibration.json",
        ),
    ],
    "quantize": [
        Writes(
            "m.onnx --precision int8 --images images --annotations val.json --val-annotations val2.json --val-images "
            "images2",
            option,
            "m.onnx val.json image val2.json image2",
        )
        for option in ("-o", "--calibration")
    ],
    "engine": [
        *(Writes("m.onnx --flavor tensorrt", option, "m.onnx") for option in ("-o", "--timing-cache")),
        Writes("best.pt -o given/m.engine", "given", "best.pt", "m.engine m.engine.json best.onnx best.fp16.onnx"),
    ],
    "deepstream": [Writes("m.onnx", "-o", "m.onnx")],
    "triton": [Writes("m.onnx", "-o", "m.onnx")],
    "verify": [Writes(f"best.pt given/m.onnx --decode nvimgcodec {DATA}", "given", COCO, "m.onnx.decoders.json")],
    "detect": [
        Writes("m.onnx images/0.png", "-o", "m.onnx image", "detections.json 0.jpg"),
        Writes("m.onnx list.txt", "-o", "m.onnx image list.txt", "detections.json 0.jpg"),
        Writes("m.onnx images list.txt", "--jsonl", "m.onnx image list.txt"),
        Writes("m.onnx images list.txt", "--parquet", "m.onnx image list.txt"),
    ],
    "evaluate": [
        *(Writes(f"m.onnx {DATA}", option, f"m.onnx {COCO}") for option in ("--json", "--results-out")),
        *(
            Writes("--results results.json part.json --annotations val.json", option, "val.json results.json part.json")
            for option in ("--json", "--results-out")
        ),
        Writes(f"m.onnx {DATA} --shard 0/2", "--results-out", f"m.onnx {COCO}"),
        Writes(f"m.onnx {DATA}", "--report", f"m.onnx {COCO}"),
    ],
    "report": [
        Writes(f"m.onnx {DATA} --train-annotations val2.json", "-o", f"m.onnx {COCO} val2.json log.jsonl best.pt"),
        Writes(f"m.onnx {DATA} -o new.html", "--card", f"m.onnx {COCO} log.jsonl best.pt"),
        Writes("--results results.json --annotations val.json", "-o", "val.json results.json"),
    ],
    "show": [Writes(f"results.json {DATA} --count 1", "--out", f"results.json {COCO}", "0_1.jpg")],
    "benchmark": [Writes("m.onnx --images images", option, "m.onnx image") for option in ("--json", "--plot")],
    "loadgen": [
        Writes(
            f"m.onnx --scenario Offline --accuracy {DATA}",
            "-o",
            f"m.onnx {COCO}",
            "settings.json result.json results.json mlperf_log_accuracy.json mlperf_log_summary.txt",
        )
    ],
    "doctor": [],  # it prints; its --json is no name
    "packages": [],
}
TWICE = {
    "detect": "m.onnx images --jsonl new --parquet new",
    "evaluate": f"m.onnx {DATA} --json new.json --results-out ./new.json",
    "report": f"m.onnx {DATA} -o new.html --card ./new.html",
    "quantize": "m.onnx --precision int8 --images images -o new.onnx --calibration new.onnx",
    "engine": "m.onnx -o new.engine --timing-cache new.engine.json",
    "benchmark": "m.onnx --images images --json new.png --plot new.png",
}
NAMES_OUTPUTS = "-o --out --output --json --jsonl --parquet --plot --results-out --timing-cache --calibration --into"
NAMES_OUTPUTS += " --card --report"
REFUSED = (
    "this run (reads|writes) that file|is the checkpoint itself|expected the folder|not a folder|exists already|"
    "a file; expected|expected another file|expected a name"
)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One of every input."""
    pytest.importorskip("onnx", reason="builds the test's graph")
    folder = tmp_path_factory.mktemp("inputs")
    for name, images in (("val.json", "images"), ("val2.json", "images2")):
        dataset = make_dataset(folder / name[:-5], [(60, 80), (60, 80)])
        shutil.move(dataset.json_path, folder / name)
        shutil.move(folder / name[:-5] / "images", folder / images)
    write_red_onnx(folder / "m.onnx")
    recipe = atss_tiny()
    saved(narrowed(recipe.model), Thresholds(), Preprocess(short_side=64, long_side=96), folder / "best.pt")
    results = [{"image_id": 1, "category_id": 7, "bbox": [8, 12, 60, 40], "score": 0.9}]
    (folder / "results.json").write_text(json.dumps(results))
    (folder / "part.json").write_text("{}")
    (folder / "list.txt").write_text("images/0.png\n")
    (folder / "log.jsonl").write_text('{"kind": "train", "step": 1, "classification": 1, "box": 1, "centerness": 1}\n')
    (folder / "mirror").mkdir()
    (folder / PUBLISHED).write_text("weights")
    (folder / "made" / "data").mkdir(parents=True)
    (folder / "made" / "backbone.pt").write_text("weights")
    return folder


@pytest.fixture
def world(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with copies of the inputs."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def place(world: Path, name: str) -> Path:
    return world / {"image": "images/0.png", "image2": "images2/0.png"}.get(name, name)


def contents(world: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in sorted(world.rglob("*")) if path.is_file()}


def refusal(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """What a command says that refuses its arguments with exit code 2."""
    with pytest.raises(SystemExit) as ended:
        cli.run(arguments)
    said = capsys.readouterr().err.strip()
    assert ended.value.code == 2, said
    assert said.startswith("error: "), said
    assert "\n" not in said
    return said


LINKS = (os.link, os.symlink)
SUFFIXES = {
    ("inspect", "-o"): ".jpg",
    ("show-batch", "-o"): ".png",
    ("inspect", "--json"): ".json",
    ("convert", "-o"): ".json",
    ("engine", "-o"): ".engine",
    ("export", "-o"): ".onnx",
    ("quantize", "-o"): ".onnx",
}
BESIDE = {"plot": ["log.jsonl"], "verify": ["m.onnx"]}  # inputs in the folder of the output
ENTRIES = [(command, entry) for command, entries in WRITES.items() for entry in entries]


@pytest.mark.parametrize(
    ("command", "entry"),
    ENTRIES,
    ids=[f"{command}{entry.option or '-out'}-{n}" for n, (command, entry) in enumerate(ENTRIES)],
)
def test_no_output_is_an_input(command: str, entry: Writes, world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if command == "loadgen":
        pytest.importorskip("mlperf_loadgen", reason="the command asks for it first")
    suffix = SUFFIXES.get((command, entry.option), "")
    for number, (name, inside) in enumerate(product(entry.reads.split(), entry.inside.split() or [""])):
        source = place(world, name)
        for way in (LINKS[number % 2],) if inside else (None, *LINKS):
            target = world / ("given" if entry.option == "given" else f"out{number}{suffix}")
            output = source
            if way is not None:
                output = target / inside
                output.parent.mkdir(exist_ok=True)
                way(source, output)
                for needed in BESIDE.get(command, ()):
                    os.link(world / needed, target / needed)
            arguments = entry.arguments.replace("{out}", str(target if inside else output)).split()
            if entry.option.startswith("-"):
                arguments += [entry.option, str(target if inside else output)]
            before = contents(world)
            assert re.search(REFUSED, said := refusal([command, *arguments], capsys)), said
            assert contents(world) == before
            if way is not None:
                shutil.rmtree(target) if inside else target.unlink()


@pytest.mark.parametrize("command", TWICE)
def test_no_file_is_written_twice(command: str, world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = contents(world)
    assert "this run writes that file already" in refusal([command, *TWICE[command].split()], capsys)
    assert contents(world) == before


def test_every_command_has_its_entry() -> None:
    assert WRITES.keys() == cli.COMMANDS.keys()


@pytest.mark.parametrize("command", WRITES)
def test_every_option_that_names_an_output_has_its_entry(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    with pytest.raises(SystemExit):
        cli.run([command, *(["atss_tiny"] if command in ("train", "show-batch") else []), "--help"])
    lines = re.findall(r"^[\s│]*(-.*?)(?:  |$)", capsys.readouterr().out, re.MULTILINE)
    offered = set(re.findall(r"(?<![\w-])--?[a-z][a-z-]*", "\n".join(lines))) & set(NAMES_OUTPUTS.split())
    assert offered or command in ("plot", "shapes", "verify", "packages")
    known = {entry.option for entry in WRITES[command]}
    known |= {word for entry in WRITES[command] for word in entry.arguments.split()}
    alike = {"-o", "--out", "--output"}
    if known & alike:
        known |= alike
    assert offered - known <= ({"--json"} if command == "doctor" else set())
