"""Translating a program without another trace: the same numbers, and no edit where a later read would see it."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram, export

from export.graph.checkpoint import checkpoint_to_graph, quiet_exporter
from export.graph.shapes import input_shapes
from export.graph.translation import make_functional, translate
from train.checkpoint import LoadedDetector

from ..conftest import Exported

HEIGHT, WIDTH = Dim("height", min=2, max=64), Dim("width", min=2, max=64)


def traced(function: nn.Module) -> ExportedProgram:
    with quiet_exporter():
        return export(function.eval(), (torch.zeros(2, 4, 6, 8),), dynamic_shapes=({2: HEIGHT, 3: WIDTH},))


def in_ort(model: onnx.ModelProto, x: Tensor) -> np.ndarray:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(["y"], {"x": x.numpy()})[0])


class Plain(nn.Module):
    """What detectors do: in-place activations and sums, casts to the same and another type, new shapes."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(4, 6, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        short = self.convolution(x.float())
        y = torch.relu_(self.convolution(x))
        y += short
        y = nn.functional.hardtanh_(y, 0.0, 6.0)
        rows = y.permute(0, 2, 3, 1).flatten(1, 2).unflatten(2, (3, -1))  # [2, h · w, 3, 2]
        bounds = torch.tensor([0.5, 2.0])
        seen = ((rows > bounds[0]) & (rows < bounds[1])).to(torch.int32)
        return rows.flatten(1) + seen.float().flatten(1) + y.flatten(1, 2).unflatten(1, (6, -1)).flatten(1).sum()


class ViewReadLater(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        y = x * 2
        view = y.transpose(2, 3)
        y.add_(1)
        return view + 0


class ValueReadLater(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        y = x * 2
        z = y.relu_()
        return y - z * 3  # y is z


class WritesItsInput(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.relu_() * 2


class NoCounterpart(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        y = torch.empty_like(x)
        torch.mul(x, 3, out=y)
        return y + 1


def test_the_edited_program_computes_the_same() -> None:
    torch.manual_seed(0)
    function = Plain().eval()
    program = traced(function)
    assert make_functional(program)
    operators = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert "aten.relu.default" in operators
    assert not [name for name in operators if "_." in name]  # aten.relu_.default
    for height, width in ((6, 8), (2, 2), (11, 5)):
        x = torch.randn(2, 4, height, width)
        torch.testing.assert_close(program.module()(x), function(x), rtol=0, atol=0)


def test_the_translation_computes_the_same_on_every_canvas(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    function = Plain().eval()
    program = traced(function)
    monkeypatch.setattr(ExportedProgram, "run_decompositions", None)  # two more traces
    with quiet_exporter():
        model = translate(program, ["x"], ["y"])
    kinds = [node.op_type for node in model.graph.node]
    assert kinds.count("Reshape") <= 6
    assert "Slice" not in kinds
    for height, width in ((6, 8), (2, 2), (11, 5)):
        x = torch.randn(2, 4, height, width)
        np.testing.assert_allclose(in_ort(model, x), function(x).detach().numpy(), rtol=1e-4, atol=1e-3)


class RoundsWhatItWrites(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return (x.half() * 2).add_(x)  # a sum out of place would be float32


class FloatsThatAreFloored(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x // 0.3 + x % 0.7


@pytest.mark.parametrize("kind", [ViewReadLater, WritesItsInput, NoCounterpart, RoundsWhatItWrites])
def test_what_an_edit_could_change_is_left_alone(kind: type[nn.Module]) -> None:
    program = traced(kind())
    before = [(node.name, node.target) for node in program.graph.nodes]
    assert not make_functional(program)
    assert [(node.name, node.target) for node in program.graph.nodes] == before


@pytest.mark.parametrize("kind", [ViewReadLater, ValueReadLater, FloatsThatAreFloored])
def test_what_is_read_later_has_been_written(kind: type[nn.Module]) -> None:
    with quiet_exporter():
        model = translate(traced(kind()), ["x"], ["y"])
    x = torch.randn(2, 4, 5, 7)
    np.testing.assert_allclose(in_ort(model, x), kind()(x).numpy(), rtol=1e-6, atol=1e-6)


def test_an_operator_that_must_be_decomposed_is() -> None:
    class Rare(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.special.xlog1py(x.abs(), x.abs()).relu_()

    program, x = traced(Rare()), torch.randn(2, 4, 5, 7)
    with quiet_exporter():
        model = translate(program, ["x"], ["y"])
    np.testing.assert_allclose(in_ort(model, x), Rare()(x).numpy(), rtol=1e-5, atol=1e-6)


def test_detectors_are_traced_once(
    exported: Exported, deformable: tuple[LoadedDetector, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    traces = []
    monkeypatch.setattr(ExportedProgram, "run_decompositions", lambda *_: traces.append("decompositions"))
    monkeypatch.setattr(torch.export, "export", lambda *a, **k: traces.append("export") or export(*a, **k))
    for loaded in (exported.loaded, deformable[0]):
        content = checkpoint_to_graph(loaded, input_shapes(loaded.config.preprocess, 3))
        assert content
    assert traces == ["export", "export"]
