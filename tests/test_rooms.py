"""The map of the house holds: which room may import which, no circles, a purpose for every module, no file too long."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

PACKAGES = ("runtime", "train", "export")
MOST_LINES = 350  # of a file: what a reader can hold

# A room is a folder of a package, or a module that lies in the package itself. A room may import what its line names,
# and these modules at the bottom of the runtime; train and export may import every room of the runtime.
BOTTOM = {
    f"runtime.{name}"
    for name in (
        "bounds",
        "command_names",
        "command_parser",
        "errors",
        "files",
        "home",
        "interrupts",
        "json_file",
        "locks",
        "manifest",
        "names",
        "outputs",
        "records",
        "stopwatch",
        "temporaries",
        "terminal",
    )
}
ARROWS = {
    # The bottom itself, whose modules import only each other.
    "runtime.bounds": "",
    "runtime.command_names": "",
    "runtime.command_parser": "",
    "runtime.errors": "",
    "runtime.files": "",
    "runtime.home": "",
    "runtime.interrupts": "",
    "runtime.json_file": "",
    "runtime.locks": "",
    "runtime.outputs": "",
    "runtime.temporaries": "",
    "runtime.names": "",
    "runtime.parquet": "",
    "runtime.records": "",
    "runtime.stopwatch": "",
    "runtime.terminal": "",
    "runtime.manifest": "",
    # What knows no backend.
    "runtime.batching": "",
    "runtime.nms": "",
    "runtime.pipeline": "",
    "runtime.machine": "",
    "runtime.detections": "runtime.nms",
    "runtime.detection_filter": "runtime.detections",
    "runtime.lettering": "",
    "runtime.training_log": "",
    "runtime.draw": "runtime.detections runtime.lettering",
    "runtime.detection_files": "runtime.detections runtime.parquet",
    "runtime.images": "runtime.parquet",
    # Running a model.
    "runtime.cuda": "runtime.images runtime.machine",
    "runtime.backends": "runtime.cuda runtime.detections runtime.images runtime.machine",
    "runtime.detector_protocol": "runtime.detections runtime.images",
    "runtime.decoders": "runtime.images",
    "runtime.batch_settings": "runtime.backends runtime.detector_protocol runtime.machine runtime.pipeline",
    "runtime.detector": "runtime.backends runtime.batch_settings runtime.batching runtime.decoders runtime.detections "
    "runtime.images runtime.pipeline",
    "runtime.model_spec": "runtime.backends runtime.detector",
    "runtime.tiling": "runtime.batch_settings runtime.batching runtime.detections runtime.detector "
    "runtime.detector_protocol runtime.images "
    "runtime.nms",
    "runtime.tta": "runtime.backends runtime.detections runtime.detector runtime.detector_protocol runtime.images "
    "runtime.nms runtime.tiling",
    "runtime.triton": "runtime.backends runtime.batching runtime.detections runtime.detector runtime.images "
    "runtime.machine",
    # What is done with a detector.
    "runtime.cluster": "runtime.backends runtime.detector runtime.model_spec",
    "runtime.detecting": "runtime.batch_settings runtime.batching runtime.cluster runtime.detection_files "
    "runtime.detection_filter runtime.detections runtime.detector runtime.draw runtime.images runtime.pipeline "
    "runtime.tiling",
    "runtime.coco": "runtime.backends runtime.batch_settings runtime.batching runtime.cluster runtime.detection_filter "
    "runtime.detections runtime.detector runtime.detector_protocol runtime.images runtime.machine runtime.model_spec "
    "runtime.parquet runtime.pipeline runtime.tiling runtime.tta",
    "runtime.analysis": "runtime.coco runtime.detection_filter",
    "runtime.benchmark": "runtime.backends runtime.batch_settings runtime.batching runtime.cuda runtime.detections "
    "runtime.detector runtime.images runtime.lettering runtime.machine runtime.model_spec",
    "runtime.report": "runtime.analysis runtime.backends runtime.batch_settings runtime.benchmark runtime.coco "
    "runtime.detection_filter runtime.detector runtime.draw runtime.images runtime.machine runtime.model_spec "
    "runtime.training_log runtime.tta",
    "runtime.loadgen": "runtime.backends runtime.batch_settings runtime.batching runtime.benchmark runtime.coco "
    "runtime.detections runtime.detector runtime.images runtime.machine runtime.model_spec",
    "runtime.doctor": "runtime.backends runtime.cuda runtime.machine",
    "runtime": "runtime.backends runtime.coco runtime.detections runtime.detector",
    # Commands.
    "runtime.detect": "runtime.backends runtime.batch_settings runtime.cluster runtime.decoders runtime.detecting "
    "runtime.detection_files runtime.detection_filter runtime.detector runtime.images runtime.model_spec "
    "runtime.tiling",
    "runtime.evaluate": "runtime.coco runtime.report",
    "runtime.show": "runtime.coco runtime.draw runtime.images",
    "runtime.cli": "runtime.waiting",
    "runtime.waiting": "",
    "runtime.packages": "runtime.cli",
    # Training: parts, which don't know the configuration; then the configuration; then what builds the parts from it.
    "train.tables": "",
    "train.integrity": "",
    "train.torch_files": "train.integrity",
    "train.geometry": "",
    "train.assign": "train.geometry train.tables",
    "train.model": "train.geometry train.integrity train.tables train.torch_files",
    "train.loss": "train.assign train.geometry train.model",
    "train.data": "train.loss",
    "train.layouts": "",
    "train.config": "train.assign train.data train.geometry train.loss train.model",
    "train.build": "train.assign train.config train.data train.geometry train.loss train.model",
    "train.tracking": "train.config train.tables",
    "train.checkpoint": "train.build train.config train.integrity train.model train.torch_files",
    "train.trainer": "train.assign train.build train.checkpoint train.config train.data train.geometry train.layouts "
    "train.loss train.model train.tables train.tracking",
    "train.shapes": "train.trainer",
    "train.pretrained": "train.build train.checkpoint train.config train.geometry train.integrity train.torch_files",
    "train.reproduce": "train.config train.data train.geometry train.model train.shapes train.trainer",
    "train.api": "train.build train.checkpoint train.config train.pretrained train.trainer",
    "train.arguments": "train.api train.config",
    "train.__main__": "train.api train.arguments train.config",
    "train.validate": "train.checkpoint train.trainer",
    "train.convert": "train.layouts",
    "train.inspect": "train.api train.assign train.config train.data train.geometry train.layouts",
    "train.plot": "",
    "train.batch_sheet": "train.data",
    "train.show_batch": "train.arguments train.batch_sheet train.build train.config train.data train.trainer",
    "train.show_assignment": "train.assign train.config train.geometry",
    # Export. The rooms up to `verification`, `graph` aside, run without torch.
    "export.onnx_model": "",
    "export.calibration": "",
    "export.quantization": "export.calibration export.onnx_model",
    "export.trt": "export.onnx_model",
    "export.verification": "export.onnx_model export.trt train.build train.checkpoint train.model train.trainer",
    "export.graph": "export.onnx_model train.build train.checkpoint train.geometry train.model train.trainer",
    "export.results": "export.verification",
    "export.triton": "export.arguments export.onnx_model",
    "export.console": "",
    "export.arguments": "export.quantization export.verification",
    "export.deepstream": "export.arguments export.onnx_model export.verification",
    "export.quantize_step": "export.arguments export.onnx_model export.quantization export.results export.verification",
    "export.export_step": "export.arguments export.deepstream export.graph export.onnx_model export.quantization "
    "export.quantize_step export.results export.trt export.verification train.checkpoint train.trainer",
    "export.verify_step": "export.arguments export.verification train.checkpoint",
    "export.api": "export.arguments export.calibration export.export_step export.graph export.quantization "
    "export.quantize_step export.results export.trt export.verification export.verify_step train.checkpoint",
    "export.to_onnx": "export.api export.arguments export.console export.quantization",
    "export.quantize": "export.api export.calibration export.console export.quantization",
    "export.to_trt": "export.api export.console export.trt",
    "export.to_deepstream": "export.console export.deepstream",
    "export.to_triton": "export.triton",
    "export.verify": "export.api export.console",
}


class Modules:
    """The modules below a folder by their dotted names, and what each imports, inside functions too."""

    def __init__(self, root: Path, packages: tuple[str, ...] = PACKAGES) -> None:
        self.paths = {
            _name(path, root): path for package in packages for path in sorted((root / package).rglob("*.py"))
        }
        self.imports = {name: set(self._imports(name)) - {name} for name in self.paths}

    def _imports(self, name: str) -> Iterator[str]:
        path = self.paths[name]
        package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names if alias.name in self.paths)
            elif isinstance(node, ast.ImportFrom):
                above = package[: len(package) - node.level + 1] if node.level else []
                base = ".".join([*above, *([node.module] if node.module else [])])
                for alias in node.names:
                    inner = f"{base}.{alias.name}"
                    if inner in self.paths or base in self.paths:
                        yield inner if inner in self.paths else base

    def room(self, name: str) -> str:
        """`runtime.images` for `runtime.images.decoding`, `runtime.files` for itself."""
        return ".".join(name.split(".")[:2])

    def arrows(self) -> dict[str, set[str]]:
        """The rooms that each room imports."""
        found: dict[str, set[str]] = {}
        for name, imported in self.imports.items():
            rooms = found.setdefault(self.room(name), set())
            rooms |= {self.room(other) for other in imported} - {self.room(name)}
        return found


def _name(path: Path, root: Path) -> str:
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def circle(graph: Mapping[str, set[str]]) -> list[str]:
    """One circle of the graph, its first node repeated at the end; empty where there is none."""
    finished: set[str] = set()
    for start in graph:
        path: list[str] = []
        stack = [(start, iter(sorted(graph[start])))] if start not in finished else []
        path += [start] if stack else []
        while stack:
            node, following = stack[-1]
            for other in following:
                if other in path:
                    return [*path[path.index(other) :], other]
                if other not in finished:
                    path.append(other)
                    stack.append((other, iter(sorted(graph.get(other, set())))))
                    break
            else:
                stack.pop()
                finished.add(path.pop())
                assert node in finished
    return []


def forbidden(arrows: Mapping[str, set[str]], allowed: Mapping[str, str]) -> list[str]:
    """The arrows that `allowed` does not have, as lines; a room that it does not know is one too."""
    lines = []
    for room, imported in arrows.items():
        if room not in allowed and imported:
            lines.append(f"{room}: a new room; say in tests/test_rooms.py what it may import")
            continue
        known = BOTTOM | set(allowed.get(room, "").split())
        if not room.startswith("runtime"):
            known |= {other for other in imported if other.startswith("runtime.")}
        lines += [f"{room} imports {other}" for other in sorted(imported - known)]
    return lines


@pytest.fixture(scope="module")
def modules(repository: Path) -> Modules:
    return Modules(repository)


def test_rooms_import_what_the_map_says(modules: Modules) -> None:
    assert forbidden(modules.arrows(), ARROWS) == []


def test_the_map_has_no_arrow_that_nobody_uses(modules: Modules) -> None:
    arrows = modules.arrows()
    unused = {
        room: [name for name in names.split() if name not in arrows.get(room, set())] for room, names in ARROWS.items()
    }
    assert {room: names for room, names in unused.items() if names} == {}


def test_there_is_no_circle(modules: Modules) -> None:
    assert circle(modules.imports) == []
    assert circle(modules.arrows()) == []


def test_every_module_says_what_it_is_for(modules: Modules) -> None:
    silent = [
        name
        for name, path in modules.paths.items()
        if not (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").strip()
    ]
    assert silent == []


def test_no_file_is_longer_than_a_reader_can_hold(repository: Path) -> None:
    folders = (*PACKAGES, "benchmarks", "scripts", "tests")
    long = {
        str(path.relative_to(repository)): lines
        for folder in folders
        for path in (repository / folder).rglob("*.py")
        if (lines := len(path.read_text(encoding="utf-8").splitlines())) > MOST_LINES
    }
    assert long == {}


@pytest.mark.parametrize(
    ("graph", "expected"),
    [
        ({}, []),
        ({"a": {"b"}, "b": {"c"}, "c": set()}, []),
        ({"a": {"b", "c"}, "b": {"c"}, "c": set()}, []),
        ({"a": {"b"}, "b": {"c"}, "c": {"b"}}, ["b", "c", "b"]),
        ({"a": {"a"}}, ["a", "a"]),
    ],
)
def test_a_circle_is_found(graph: dict[str, set[str]], expected: list[str]) -> None:
    assert circle(graph) == expected


def test_a_planted_arrow_a_new_room_and_an_import_inside_a_function_are_found(tmp_path: Path) -> None:
    for room, source in {
        "low/__init__": "",
        "high/__init__": "",
        "low/data": "def load():\n    from ..high.loop import run\n    return run",
        "high/loop": "from ..low import data\nrun = data",
    }.items():
        (tmp_path / "runtime" / room).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "runtime" / f"{room}.py").write_text(source, encoding="utf-8")
    (tmp_path / "runtime" / "__init__.py").touch()
    planted = Modules(tmp_path, ("runtime",))
    assert planted.imports["runtime.low.data"] == {"runtime.high.loop"}
    assert planted.imports["runtime.high.loop"] == {"runtime.low.data"}
    assert forbidden(planted.arrows(), {"runtime.high": "runtime.low"}) == [
        "runtime.low: a new room; say in tests/test_rooms.py what it may import"
    ]
    assert forbidden(planted.arrows(), {"runtime.high": "runtime.low", "runtime.low": ""}) == [
        "runtime.low imports runtime.high"
    ]
    assert circle(planted.imports) == ["runtime.low.data", "runtime.high.loop", "runtime.low.data"] or circle(
        planted.imports
    ) == ["runtime.high.loop", "runtime.low.data", "runtime.high.loop"]
