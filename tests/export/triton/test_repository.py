"""Model repositories: configurations that Triton's protobuf reads, against the graph's own signature."""

from __future__ import annotations

import dataclasses
import errno
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from export.onnx_model.network import ModelError
from export.to_triton import main
from export.triton.config import ServingOptions, import_messages, network_config
from export.triton.network import read_network
from export.triton.repository import write_repository
from runtime.backends.engine_file import EngineError, json_path, read_engine
from runtime.errors import UserError
from runtime.files import WriteError
from runtime.manifest import from_json
from train.checkpoint import LoadedDetector

from ...support.blocked import run_without
from ..conftest import Exported
from .conftest import parsed

pytest.importorskip("tritonclient.grpc", reason="pip install 'atss-toolkit[triton]'")
# Types as ONNX Runtime names them, and as Triton does.
TYPES = {"tensor(uint8)": "TYPE_UINT8", "tensor(int32)": "TYPE_INT32", "tensor(float)": "TYPE_FP32"}
FRONT = {
    "encoded": ("TYPE_STRING", [1]),
    "pixels": ("TYPE_UINT8", [-1, -1, 3]),
    "boxes": ("TYPE_FP32", [-1, 4]),
    "scores": ("TYPE_FP32", [-1]),
    "classes": ("TYPE_INT32", [-1]),
    "labels": ("TYPE_STRING", [-1]),
}


def tensors(config: Any) -> dict[str, tuple[str, list[int]]]:
    """Type and shape of each input and output by name."""
    kinds = import_messages().DataType
    return {one.name: (kinds.Name(one.data_type), list(one.dims)) for one in (*config.input, *config.output)}


def signature(model: Path, batched: bool) -> dict[str, tuple[str, list[int]]]:
    """What ONNX Runtime says of a file's inputs and outputs, without the batch where Triton adds it."""
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    return {
        one.name: (
            TYPES[one.type],
            [size if isinstance(size, int) else -1 for size in (one.shape[1:] if batched else one.shape)],
        )
        for one in (*session.get_inputs(), *session.get_outputs())
    }


def names(config: Any) -> tuple[list[str], list[str]]:
    return [one.name for one in config.input], [one.name for one in config.output]


def test_an_exported_file_by_the_command(
    exported: Exported, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "new" / "repository"
    assert main([str(exported.model), "-o", str(root), "--name", "shapes"]) == 0
    assert "shapes and shapes_network" in capsys.readouterr().out
    assert sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()) == [
        "shapes/1/model.py",
        "shapes/config.pbtxt",
        "shapes_network/1/model.onnx",
        "shapes_network/config.pbtxt",
    ]
    assert os.listdir(root.parent) == ["repository"]
    assert (root / "shapes_network/1/model.onnx").read_bytes() == exported.model.read_bytes()

    network = parsed(root / "shapes_network")
    manifest = read_network(exported.model).manifest
    assert tensors(network) == signature(exported.model, batched=True)
    assert names(network)[0] == ["images", "image_sizes"]
    assert (network.name, network.backend, network.max_batch_size) == ("shapes_network", "onnxruntime", 16)
    assert list(network.dynamic_batching.preferred_batch_size) == [16]
    assert [(group.count, group.kind, list(group.profile)) for group in network.instance_group] == [(1, 0, [])]
    assert not network.optimization.HasField("execution_accelerators")
    assert not network.optimization.cuda.graphs
    assert from_json(network.parameters["manifest"].string_value, "test") == manifest

    front = parsed(root / "shapes")
    assert tensors(front) == FRONT
    assert names(front) == (["encoded", "pixels"], ["boxes", "scores", "classes", "labels"])
    assert all(one.optional and one.allow_ragged_batch for one in front.input)
    assert (front.backend, front.max_batch_size) == ("python", 16)
    assert front.dynamic_batching.max_queue_delay_microseconds == 2000
    assert {name: value.string_value for name, value in front.parameters.items() if name != "manifest"} == {
        "network": "shapes_network",
        "max_megapixels": "64.0",
    }
    assert from_json(front.parameters["manifest"].string_value, "test") == manifest
    compile((root / "shapes/1/model.py").read_text(), "model.py", "exec")


def test_the_options_are_in_the_configuration(exported: Exported, tmp_path: Path) -> None:
    words = ["--device", "gpu", "--instances", "2", "--front-instances", "3", "--queue-delay-ms", "0.5"]
    main([str(exported.model), "-o", str(tmp_path / "a"), *words])
    network, front = parsed(tmp_path / "a/model_network"), parsed(tmp_path / "a/model")
    kinds = import_messages().ModelInstanceGroup
    assert (network.instance_group[0].count, network.instance_group[0].kind) == (2, kinds.KIND_GPU)
    assert (front.instance_group[0].count, front.instance_group[0].kind) == (3, kinds.KIND_CPU)
    assert front.dynamic_batching.max_queue_delay_microseconds == 500


def test_batches_may_be_smaller_than_the_files(engine: Path, exported: Exported, tmp_path: Path) -> None:
    main([str(exported.model), "-o", str(tmp_path / "a"), "--batch-max", "1"])
    network, front = parsed(tmp_path / "a/model_network"), parsed(tmp_path / "a/model")
    assert (network.max_batch_size, front.max_batch_size) == (1, 1)
    assert list(network.dynamic_batching.preferred_batch_size) == [1]
    write_repository(engine, tmp_path / "b", options=ServingOptions(batch_max=6))
    network = parsed(tmp_path / "b/model_network")
    assert (network.max_batch_size, list(network.dynamic_batching.preferred_batch_size)) == (6, [4, 6])
    assert [graph.batch_size for graph in network.optimization.cuda.graph_spec] == [4, 6], "none is larger"
    write_repository(exported.model, tmp_path / "c", options=ServingOptions(batch_max=99))
    assert parsed(tmp_path / "c/model").max_batch_size == 16

    read = read_network(exported.model)
    full = dataclasses.replace(read.manifest.inputs, batch_min=4)
    full_batches = dataclasses.replace(read, manifest=dataclasses.replace(read.manifest, inputs=full))
    assert network_config("a", full_batches, ServingOptions(batch_max=1)).max_batch_size == 4


def test_a_graph_of_one_shape_gets_no_batches(fixed: tuple[LoadedDetector, Path], tmp_path: Path) -> None:
    write_repository(fixed[1], tmp_path / "a")
    network = parsed(tmp_path / "a/fixed_network")
    assert network.max_batch_size == 0
    assert not network.HasField("dynamic_batching")
    assert tensors(network) == signature(fixed[1], batched=False)
    assert tensors(network)["images"] == ("TYPE_UINT8", [1, 192, 224, 3])


def test_an_engine_gets_both_profiles_and_their_cuda_graphs(engine: Path, exported: Exported, tmp_path: Path) -> None:
    write_repository(engine, tmp_path / "a", "shapes")
    assert (tmp_path / "a/shapes_network/1/model.plan").read_bytes() == engine.read_bytes()
    network = parsed(tmp_path / "a/shapes_network")
    assert (network.platform, network.backend, network.max_batch_size) == ("tensorrt_plan", "", 16)
    assert tensors(network) == signature(exported.model, batched=True)
    group = network.instance_group[0]
    assert (group.kind, list(group.profile)) == (import_messages().ModelInstanceGroup.KIND_GPU, ["0", "1"])
    assert list(network.dynamic_batching.preferred_batch_size) == [4, 8]
    assert network.optimization.cuda.graphs
    assert [
        (graph.batch_size, list(graph.input["images"].dim), list(graph.input["image_sizes"].dim))
        for graph in network.optimization.cuda.graph_spec
    ] == [(4, [192, 256, 3], [2]), (8, [256, 192, 3], [2])]
    assert network.parameters["tensorrt"].string_value == "10.13.2.6"
    assert network.parameters["compute_capabilities"].string_value == "8.6 9.0"


def test_inline_the_model_in_front_has_the_file(exported: Exported, engine: Path, tmp_path: Path) -> None:
    words = ["--network", "inline", "--backend", "cpu", "--instances", "2", "--device", "cpu"]
    named = Path(shutil.copy(exported.model, tmp_path / 'modèle "1".ONNX'))
    main([str(named), "-o", str(tmp_path / "a"), "--name", "model", *words])
    compile((tmp_path / "a/model/1/model.py").read_text("ascii"), "model.py", "exec")
    assert sorted(os.listdir(tmp_path / "a")) == ["model"]
    assert sorted(os.listdir(tmp_path / "a/model/1")) == ["model.onnx", "model.py"]
    front = parsed(tmp_path / "a/model")
    assert tensors(front) == FRONT
    assert (front.parameters["model_file"].string_value, front.parameters["backend"].string_value) == (
        "model.onnx",
        "cpu",
    )
    assert "network" not in front.parameters
    group = front.instance_group[0]
    assert (group.count, group.kind) == (2, import_messages().ModelInstanceGroup.KIND_CPU)

    write_repository(engine, tmp_path / "b", options=ServingOptions(placement="inline"))
    placed = tmp_path / "b/model/1/model.engine"
    assert read_engine(placed) == read_engine(engine), "with its description beside it"


def test_an_engine_for_rtx_is_served_inline_only(exported: Exported, tmp_path: Path) -> None:
    """A real one: its tensors, as TensorRT told them, are the graph's."""
    pytest.importorskip("tensorrt_rtx", reason="builds on a CPU")
    from export.api import build_engine

    path = tmp_path / "model.engine"
    build_engine(exported.model, path, flavor="rtx", compute_capabilities=["8.6"], shapes=["64x64:192x256:256x256"])
    assert sorted(read_network(path).tensors, key=lambda one: one.name) == sorted(
        read_network(exported.model).tensors, key=lambda one: one.name
    )
    with pytest.raises(UserError, match="does not run engines of TensorRT for RTX; serve it with --network inline"):
        write_repository(path, tmp_path / "a")
    assert not (tmp_path / "a").exists()
    write_repository(path, tmp_path / "a", options=ServingOptions(placement="inline"))
    kinds = import_messages().ModelInstanceGroup
    assert parsed(tmp_path / "a/model").instance_group[0].kind == kinds.KIND_GPU


def test_a_repository_may_have_other_models(exported: Exported, tmp_path: Path) -> None:
    root = tmp_path / "repository"
    write_repository(exported.model, root, "one")
    write_repository(exported.model, root, "two")
    assert sorted(os.listdir(root)) == ["one", "one_network", "two", "two_network"]


@pytest.mark.parametrize("taken", ["shapes", "shapes_network"])
def test_a_model_of_that_name_stays_as_it_was(taken: str, exported: Exported, tmp_path: Path) -> None:
    held = tmp_path / "repository" / taken / "config.pbtxt"
    held.parent.mkdir(parents=True)
    held.write_text("mine")
    with pytest.raises(UserError, match=f"{taken}: the repository has a model of that name") as raised:
        write_repository(exported.model, tmp_path / "repository", "shapes")
    one_line(raised.value)
    assert (held.read_text(), os.listdir(tmp_path / "repository")) == ("mine", [taken])


@pytest.mark.parametrize("fails_at", ["write", "first", "second"])
def test_nothing_is_left_of_a_repository_that_fails(
    fails_at: str, exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is full while the files are written, or one of the two renames fails."""
    renamed: list[Path] = []
    rename = Path.rename

    def failing(*_: object) -> None:
        raise OSError(28, "No space left on device")

    def renaming(self: Path, target: Path) -> Path:
        renamed.append(target)
        if len(renamed) == (1 if fails_at == "first" else 2):
            failing()
        return rename(self, target)

    if fails_at == "write":
        monkeypatch.setattr(Path, "write_bytes", failing)
    else:
        monkeypatch.setattr(Path, "rename", renaming)
    with pytest.raises(WriteError, match="No space left on device") as raised:
        write_repository(exported.model, tmp_path / "repository", "shapes")
    one_line(raised.value)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("number", [errno.EXDEV, errno.EACCES])
def test_a_repository_may_be_a_mounted_volume(
    number: int, exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing can be renamed into it from outside. Here a link leads to it."""
    root, rename = tmp_path / "volume", Path.rename

    def renaming(self: Path, target: Path) -> Path:
        if root not in self.parents:
            raise OSError(number, os.strerror(number))
        return rename(self, target)

    root.mkdir()
    (tmp_path / "link").symlink_to(root)
    monkeypatch.setattr(Path, "rename", renaming)
    write_repository(exported.model, tmp_path / "link", "shapes")
    assert sorted(os.listdir(root)) == ["shapes", "shapes_network"]
    assert sorted(os.listdir(tmp_path)) == ["link", "volume"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--name", "a/b"], "--name a/b: expected ASCII letters"),
        (["--name", ".hidden"], "--name .hidden: expected ASCII letters"),
        (["--name", "modèle"], "--name modèle: expected ASCII letters"),
        (["--backend", "cpu"], "--backend is for --network inline"),
    ],
)
def test_options_that_cannot_be_meant(words: list[str], message: str, exported: Exported, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message.replace(".", r"\.")) as raised:
        main([str(exported.model), "-o", str(tmp_path / "a"), *words])
    one_line(raised.value)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    "words",
    [
        ["--instances", "0"],
        ["--instances", "9999999999"],
        ["--batch-max", "0"],
        ["--queue-delay-ms", "-1"],
        ["--queue-delay-ms", "nan"],
        ["--queue-delay-ms", "1e30"],
    ],
)
def test_numbers_out_of_bounds(
    words: list[str], exported: Exported, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main([str(exported.model), "-o", str(tmp_path / "a"), *words])
    assert ended.value.code == 2
    assert f"argument {words[0]}: {words[1]}: expected" in capsys.readouterr().err
    assert os.listdir(tmp_path) == []


def test_files_that_cannot_be_served(exported: Exported, engine: Path, tmp_path: Path) -> None:
    (tmp_path / "text.onnx").write_bytes(b"no model")
    (tmp_path / "a.pt").write_bytes(b"")
    changed = tmp_path / "changed.engine"
    changed.write_bytes(b"another engine")
    shutil.copy(json_path(engine), json_path(changed))
    (tmp_path / "file").write_text("")
    root = tmp_path / "repository"
    for path, kind, message in (
        (tmp_path / "none.onnx", ModelError, r"cannot read .*none\.onnx"),
        (tmp_path / "text.onnx", ModelError, "not an ONNX file"),
        (tmp_path / "a.pt", UserError, "expected an exported file .* export one"),
        (changed, EngineError, "its SHA-256 is not the one"),
    ):
        with pytest.raises(kind, match=message) as raised:
            write_repository(path, root)
        one_line(raised.value)
    with pytest.raises(UserError, match="an engine runs on a GPU; leave out --device cpu"):
        write_repository(engine, root, options=ServingOptions(device="cpu"))
    with pytest.raises(UserError, match=r"-o .*file: a file; expected the folder"):
        write_repository(exported.model, tmp_path / "file")
    assert not root.exists()


def test_a_type_that_triton_has_no_name_for(exported: Exported) -> None:
    network = read_network(exported.model)
    strange = dataclasses.replace(network.tensors[0], dtype=np.dtype("complex64").name)
    changed = dataclasses.replace(network, tensors=(strange, *network.tensors[1:]))
    with pytest.raises(UserError, match="input images is complex64, which Triton's configuration has no type for"):
        network_config("a", changed, ServingOptions())


def test_a_missing_client_is_one_line(exported: Exported, repository: Path, tmp_path: Path) -> None:
    words = (str(exported.model), "-o", str(tmp_path / "a"))
    done = run_without("tritonclient torch", repository, *words, module="export.to_triton")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: Triton's client is not installed")
    assert done.stderr.endswith("pip install 'atss-toolkit[triton]'\n")
    assert os.listdir(tmp_path) == []
    done = run_without("torch torchvision", repository, *words, module="export.to_triton")
    assert done.returncode == 0, done.stderr


def one_line(error: BaseException) -> None:
    assert len(str(error).splitlines()) == 1
