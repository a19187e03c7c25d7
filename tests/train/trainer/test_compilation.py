"""Compiled criteria and networks: the plain ones' numbers, few graphs for many sizes, eager as a way out."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from functorch.compile import make_boxed_func
from torch import Tensor
from torch._dynamo import config as front_end
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.backends.debugging import aot_eager
from torch._dynamo.utils import counters
from torch._inductor import config as inductor

from tests.train.loss.test_criterion import random_outputs
from train import config
from train.build import build_criterion, build_detector
from train.checkpoint import read_checkpoint
from train.config import Config
from train.config.recipes import RECIPES
from train.geometry.anchors import anchors_per_cell
from train.loss.criterion import Criterion, Losses, Normalizers, Targets
from train.model.detector import DenseOutputs
from train.trainer import loop
from train.trainer.compilation import (
    PAYS_FROM,
    CompiledCriterion,
    CompiledNetwork,
    Compiler,
    compiles_loss,
    uses_cuda_graphs,
)
from train.trainer.distributed import ALONE, World

Make = Callable[..., Config]
CLASSES = 3
CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    torch.compiler.reset()
    counters.clear()
    yield
    torch.compiler.reset()


def refuse(line: str) -> None:
    raise AssertionError(line)


def compiler() -> Compiler:
    """The compiler's front end and its gradients, without machine code; what can't be compiled is an error."""
    return Compiler(refuse, backend="aot_eager")


def graphs() -> int:
    return counters["stats"]["unique_graphs"]


def outputs_of(model: config.Model, canvas_hw: tuple[int, int], seed: int) -> DenseOutputs:
    plain = random_outputs(2, seed, canvas_hw=canvas_hw)
    anchors = anchors_per_cell(model.anchors)
    maps = [[m.detach().repeat(1, anchors, 1, 1).requires_grad_() for m in found] for found in plain]
    return DenseOutputs(maps[0], maps[1], maps[2] if model.head.has_centerness else [])


def targets_on(canvas_hw: tuple[int, int], boxes: int, seed: int) -> Targets:
    """Targets of two images, of which the second has half as many boxes."""
    generator = torch.Generator().manual_seed(seed)
    sides = torch.tensor([canvas_hw[1], canvas_hw[0]])
    size = 16 + torch.rand(2, boxes, 2, generator=generator) * (sides / 2 - 16)
    low = torch.rand(2, boxes, 2, generator=generator) * (sides - size)
    mask = torch.ones(2, boxes, dtype=torch.bool)
    mask[1, boxes // 2 :] = False
    labels = torch.randint(0, CLASSES, (2, boxes), generator=generator)
    return Targets(torch.cat((low, low + size), dim=-1), labels, mask)


def numbers(
    criterion: Criterion | CompiledCriterion, outputs: DenseOutputs, targets: Targets, canvas_hw: tuple[int, int]
) -> tuple[Tensor, Losses, Normalizers, list[Tensor]]:
    """What a step asks of a criterion: the assignment, the losses, their divisors and gradients."""
    assigned = criterion.assign(targets, canvas_hw)
    losses = criterion(outputs, targets, canvas_hw, None, assigned)
    leaves = [m for maps in outputs for m in maps]
    gradients = torch.autograd.grad(losses.total, leaves, allow_unused=True, materialize_grads=True)
    return assigned.matched, losses, criterion.normalizers(targets, canvas_hw, assigned), list(gradients)


def require_equal(model: config.Model, compiled: CompiledCriterion, canvas_hw: tuple[int, int], boxes: int) -> None:
    outputs, targets = outputs_of(model, canvas_hw, seed=boxes), targets_on(canvas_hw, boxes, seed=boxes)
    ours = numbers(compiled, outputs, targets, canvas_hw)
    theirs = numbers(build_criterion(model), outputs, targets, canvas_hw)
    assert (theirs[0] >= 0).any()
    assert torch.equal(ours[0], theirs[0])
    torch.testing.assert_close(ours[1:], theirs[1:], rtol=1e-5, atol=1e-6)


def criterion_models() -> dict[str, config.Model]:
    """The recipes' models without what the criterion doesn't read, each once."""
    found: dict[str, config.Model] = {}
    for name, recipe in RECIPES.items():
        model = recipe().model
        plain = config.Model(
            head=config.Head(centerness=model.head.centerness),
            anchors=model.anchors,
            regression=model.regression,
            assignment=model.assignment,
            loss=model.loss,
        )
        if plain not in found.values():
            found[name] = plain
    return found


MODELS = criterion_models()
FAST = {"atss_r50_fpn_1x", "retinanet_r50_fpn_1x", "fcos_r50_fpn_1x"}


@pytest.mark.parametrize("name", [pytest.param(n, marks=[] if n in FAST else pytest.mark.slow) for n in MODELS])
def test_the_criterion_of_every_recipe_compiles_as_one_graph_with_equal_numbers(name: str) -> None:
    model = MODELS[name]
    compiled = CompiledCriterion(build_criterion(model), compiler(), fixed_canvas=True)
    require_equal(model, compiled, (128, 160), 5)
    assert graphs() == 3, "assignment, losses, divisors"
    require_equal(model, compiled, (128, 160), 1)
    require_equal(model, compiled, (128, 160), 12)
    assert graphs() == 3, "the number of boxes makes no new graph"


def test_one_graph_serves_all_large_canvases() -> None:
    model = config.Model(assignment=config.Assignment(k=1))  # a window of 3 × 3, so that no canvas need be large
    compiled = CompiledCriterion(build_criterion(model), compiler(), fixed_canvas=False)
    sizes = [((288, 320), 3), ((320, 288), 7), ((416, 544), 1), ((288, 704), 2), ((512, 512), 30)]
    for canvas_hw, boxes in sizes:
        require_equal(model, compiled, canvas_hw, boxes)
    assert graphs() == 3
    # Levels that are narrower than the window have graphs of their own.
    require_equal(model, compiled, (288, 160), 4)
    assert graphs() == 4


def warning_backend(module: str, message: str) -> Callable[..., Any]:
    """A backend during which the module of this name warns."""

    def advising(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        exec("import warnings\nwarnings.warn(message)", {"__name__": module, "message": message})
        return aot_eager(graph, inputs)

    return advising


@pytest.mark.parametrize("module", ["torch._inductor.lowering", "triton.language.core", "multiprocessing.popen_fork"])
def test_warnings_of_the_compiler_are_shown_and_end_no_compilation(module: str) -> None:
    """Warnings are errors here, and what fails while compiling ends compilation."""
    function = Compiler(refuse, warning_backend(module, "softmax is computed in two steps")).compile(lambda x: 2 * x)
    with pytest.warns(UserWarning, match="in two steps"):
        found = function(torch.ones(3))
    assert torch.equal(found, torch.full((3,), 2.0))
    assert graphs() == 1


def test_warnings_that_no_user_can_act_on_are_not_shown(recwarn: pytest.WarningsRecorder) -> None:
    for message in ("TensorFloat32 tensor cores available", "`torch.jit.script_method` is deprecated."):
        function = Compiler(refuse, warning_backend("torch._inductor.lowering", message)).compile(lambda x: 2 * x)
        assert torch.equal(function(torch.ones(3)), torch.full((3,), 2.0))
    assert not recwarn.list


@pytest.mark.parametrize("action", ["error", "ignore"])
def test_warnings_of_the_toolkit_are_what_they_were(action: str, recwarn: pytest.WarningsRecorder) -> None:
    lines: list[str] = []
    one = Compiler(lines.append, warning_backend("train.assign.atss", "of our own"))
    with warnings.catch_warnings():
        warnings.simplefilter(action)  # type: ignore[arg-type]
        one.compile(lambda x: 2 * x)(torch.ones(3))
    assert one.failed == (action == "error")
    assert ["of our own" in line for line in lines] == [True] * one.failed
    assert not recwarn.list


@front_end.patch(recompile_limit=1)
def test_sizes_beyond_the_compilers_limit_are_computed_without_it() -> None:
    """One line says so, however many sizes follow."""
    model = config.Model(assignment=config.Assignment(k=1))
    lines: list[str] = []
    one = Compiler(lines.append, backend="aot_eager")
    compiled = CompiledCriterion(build_criterion(model), one, fixed_canvas=False)
    for canvas_hw in ((288, 320), (288, 160), (320, 320), (160, 288)):
        require_equal(model, compiled, canvas_hw, 3)
    assert not one.failed
    assert graphs() == 3
    (line,) = lines
    assert "limit of graphs" in line


def test_the_network_compiles_once_for_all_canvases(small_config: Make) -> None:
    """Forward alone: torch 2.14's own backward pass of so narrow a network crashes on some of these canvases."""
    settings = small_config()
    torch.manual_seed(0)
    model = build_detector(settings.model, CLASSES, settings.preprocess).train()
    compiled = CompiledNetwork(model, compiler(), fixed_canvas=False, cuda_graphs=False)
    for canvas_hw in ((160, 192), (192, 160), (288, 224), (160, 320)):
        images = torch.randint(0, 256, (2, *canvas_hw, 3), dtype=torch.uint8)
        for ours, theirs in zip(compiled(images), model(images), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)
    assert graphs() == 1


def run(settings: Config, out: Path) -> dict[str, Tensor]:
    return read_checkpoint(loop.train_detector(settings, out).last).model


def with_run(settings: Config, **changes: Any) -> Config:
    return replace(settings, run=replace(settings.run, **changes))


def test_compiled_losses_take_the_same_steps(
    small_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(loop, "Compiler", lambda warn: compiler())
    settings = small_config(optimizer="sgd", learning_rate=1e-3, batch=4)
    settings = with_run(settings, accumulate=2)
    expected, found = run(settings, tmp_path / "plain"), run(with_run(settings, compile_loss="always"), tmp_path / "a")
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert graphs() == 3
    assert "warning" not in capsys.readouterr().out


@inductor.patch({"cpp.cxx": (None, "/nowhere/g++"), "force_disable_caches": True})
def test_without_a_compiler_training_goes_on_with_one_warning(
    small_config: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The real backend, on a machine whose C++ compiler is missing."""
    settings = small_config(steps=2)
    expected = run(settings, tmp_path / "plain")
    found = run(with_run(settings, compile_loss="always", compile=True), tmp_path / "compiled")
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    (line,) = [text for text in capsys.readouterr().out.splitlines() if "warning" in text]
    assert "torch.compile failed" in line
    assert "without it: " in line
    assert "raised:" not in line, "the cause itself, not who raised it"


def test_a_backward_pass_that_cannot_be_compiled_shows_in_the_forward_pass() -> None:
    def refuse(*_: object) -> None:
        raise RuntimeError("no compiler for gradients")

    backend = aot_autograd(fw_compiler=lambda graph, _: make_boxed_func(graph.forward), bw_compiler=refuse)
    lines: list[str] = []
    x = torch.linspace(0, 1, 4).requires_grad_()
    Compiler(lines.append, backend).compile(lambda x: (x * x).sum())(x).backward()
    torch.testing.assert_close(x.grad, 2 * x.detach())
    (line,) = lines
    assert "torch.compile failed" in line


def test_an_error_of_the_function_itself_is_raised() -> None:
    lines: list[str] = []

    def wrong(x: Tensor) -> Tensor:
        return x @ x

    with pytest.raises(RuntimeError):
        Compiler(lines.append, backend="aot_eager").compile(wrong)(torch.zeros(2, 3))


def test_losses_are_compiled_on_a_gpu_where_the_run_is_long(small_config: Make) -> None:
    short, long = small_config(steps=PAYS_FROM - 1), small_config(steps=PAYS_FROM)
    assert compiles_loss(long, GPU)
    assert not compiles_loss(short, GPU)
    assert not compiles_loss(long, CPU)
    for device in (CPU, GPU):
        assert compiles_loss(with_run(short, compile_loss="always"), device)
        assert not compiles_loss(with_run(long, compile_loss="never"), device)


def test_cuda_graphs_are_for_a_fixed_canvas_on_one_gpu(small_config: Make) -> None:
    fixed = small_config()
    varied = replace(fixed, augment=replace(fixed.augment, crop=(0, 0)))
    assert uses_cuda_graphs(fixed, GPU, ALONE)
    assert not uses_cuda_graphs(fixed, CPU, ALONE)
    assert not uses_cuda_graphs(varied, GPU, ALONE)
    assert not uses_cuda_graphs(fixed, GPU, World(0, 2))
    assert not uses_cuda_graphs(with_run(fixed, accumulate=2), GPU, ALONE)
