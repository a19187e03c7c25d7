"""Training on an NVIDIA GPU against the same on the CPU: what a user with one runs first (`scripts/test.sh -m gpu`)."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from runtime.training_log import LOG, read_log
from tests.train.loss.test_criterion import CANVAS, random_outputs, targets_of
from train import config
from train.build import build_criterion, build_detector
from train.config import Config
from train.loss.criterion import Losses, Targets
from train.model.detector import DenseOutputs
from train.trainer.compilation import CompiledCriterion, Compiler, compiler_may_warn
from train.trainer.loop import train_detector
from train.trainer.optim import build_optimizer, resume_optimizer

# Warnings of torch on a GPU: the first of any use of the mode, the second of torch's own data loader up to 2.11.
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype"),
    pytest.mark.filterwarnings("ignore:The argument 'device' of Tensor:DeprecationWarning"),
]

BOXES = [[[10.0, 12.0, 60.0, 70.0], [30.0, 20.0, 90.0, 60.0]], []]


@pytest.fixture(autouse=True)
def _gpu() -> None:
    if not torch.cuda.is_available():
        pytest.skip("torch finds no CUDA device")


@pytest.fixture
def _no_host_sync() -> Iterator[None]:
    """Any wait of the host for the device is an error while this lasts."""
    torch.cuda.synchronize()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Synchronization debug mode is a prototype")
        torch.cuda.set_sync_debug_mode("error")
    yield
    torch.cuda.set_sync_debug_mode("default")


@pytest.fixture
def exact_float32() -> Iterator[None]:
    """Without TF32, which torch allows in convolutions; a CPU has none."""
    before = torch.backends.cudnn.allow_tf32
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Please use the new API settings to control TF32")  # torch 2.9 and 2.10
        torch.backends.cudnn.allow_tf32 = False
        yield
        torch.backends.cudnn.allow_tf32 = before


@pytest.fixture
def _compiler_may_warn() -> Iterator[None]:
    """For a whole test: kernels of a backward pass are loaded, tuned and recorded when they first run."""
    with compiler_may_warn():
        yield


def on_gpu(outputs: DenseOutputs, targets: Targets) -> tuple[DenseOutputs, Targets]:
    moved = DenseOutputs(*([m.detach().cuda().requires_grad_() for m in maps] for maps in outputs))
    return moved, Targets(*(t.cuda() for t in targets))


def losses_and_gradients(outputs: DenseOutputs, targets: Targets) -> tuple[Losses, list[torch.Tensor]]:
    losses = build_criterion(config.Model())(outputs, targets, CANVAS)
    return losses, list(torch.autograd.grad(losses.total, [m for maps in outputs for m in maps]))


def test_criterion_equals_the_cpus_without_a_host_sync(request: pytest.FixtureRequest) -> None:
    outputs, targets = random_outputs(len(BOXES), seed=0), targets_of(BOXES)
    outputs = DenseOutputs(*([m.detach().requires_grad_() for m in maps] for maps in outputs))
    expected, expected_gradients = losses_and_gradients(outputs, targets)
    moved = on_gpu(outputs, targets)
    losses_and_gradients(*moved)  # the first call of a kernel may load it, which waits
    request.getfixturevalue("_no_host_sync")
    given, gradients = losses_and_gradients(*moved)
    torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close(Losses(*(loss.cpu() for loss in given)), expected, rtol=1e-4, atol=1e-5)
    for ours, theirs in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(ours.cpu(), theirs, rtol=1e-3, atol=1e-6)


@pytest.mark.usefixtures("_compiler_may_warn")
def test_compiled_losses_equal_the_plain_ones_without_a_host_sync(request: pytest.FixtureRequest) -> None:
    outputs, targets = on_gpu(random_outputs(len(BOXES), seed=0), targets_of(BOXES))
    criterion = build_criterion(config.Model())
    expected = criterion(outputs, targets, CANVAS)
    compiled = CompiledCriterion(criterion, Compiler(pytest.fail), fixed_canvas=True)
    leaves = [m for maps in outputs for m in maps]

    def step() -> tuple[Losses, tuple[torch.Tensor, ...]]:
        losses = compiled(outputs, targets, CANVAS, None, compiled.assign(targets, CANVAS))
        return losses, torch.autograd.grad(losses.total, leaves)

    # The first call compiles, and the first run of a kernel loads and tunes it. CUDA graphs, where the compiler makes
    # any, are recorded in the second call and replayed from the third on. All of this waits.
    for _ in range(3):
        step()
    request.getfixturevalue("_no_host_sync")
    losses, gradients = step()
    torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close(losses, expected, rtol=1e-4, atol=1e-5)
    for ours, theirs in zip(gradients, torch.autograd.grad(expected.total, leaves), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-6)


@pytest.mark.usefixtures("_compiler_may_warn", "exact_float32")
@pytest.mark.parametrize("crop", [(64, 64), (0, 0)], ids=["a CUDA graph", "a dynamic canvas"])
def test_a_compiled_network_trains_as_the_plain_one(
    crop: tuple[int, int], small_config: Callable[..., Config], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without TF32, in which two ways of computing the same convolution differ by several percent of a gradient."""
    plain = small_config(steps=8)
    plain = replace(plain, augment=replace(plain.augment, crop=crop))
    losses = {}
    for compiled in (False, True):
        run = replace(plain.run, device="cuda", compile=compiled, compile_loss="always" if compiled else "never")
        train_detector(replace(plain, run=run), tmp_path / str(compiled))
        log = read_log(tmp_path / str(compiled) / LOG)
        losses[compiled] = [line["total"] for line in log if line["kind"] == "train"]
    assert losses[True] == pytest.approx(losses[False], rel=0.05)
    printed = capsys.readouterr().out
    assert "warning" not in printed, printed


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_a_state_saved_on_a_cpu_is_continued_by_the_fused_optimizer(
    name: str, small_config: Callable[..., Config]
) -> None:
    """Of a plain optimizer, whose step counts lie on the CPU."""
    settings = small_config(optimizer=name)
    models = [build_detector(settings.model, 3, settings.preprocess) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    models[1].cuda()
    optimizers = [build_optimizer(model, settings.schedule) for model in models]
    for group in optimizers[0].param_groups:
        group["fused"] = None
    for step in range(4):
        for model, optimizer in zip(models, optimizers, strict=True):
            for parameter, source in zip(model.parameters(), models[0].parameters(), strict=True):
                parameter.grad = torch.full_like(source, 0.01 * (step + 1)).to(parameter.device)
            if step != 1 or model is models[0]:
                optimizer.step()
        if step == 1:
            models[1].load_state_dict(models[0].state_dict())
            resume_optimizer(optimizers[1], optimizers[0].state_dict())
    for ours, theirs in zip(models[1].parameters(), models[0].parameters(), strict=True):
        torch.testing.assert_close(ours.cpu(), theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_short_training_goes_as_on_the_cpu(
    precision: str, small_config: Callable[..., Config], tmp_path: Path, exact_float32: None
) -> None:
    plain = small_config(steps=12)
    plain = replace(plain, augment=replace(plain.augment, crop=(96, 96)))  # 64 is too small for bf16 on a CPU
    losses = {}
    for device, name in (("cpu", "fp32"), ("cuda", precision)):
        settings = replace(plain, run=replace(plain.run, device=device, precision=name))  # type: ignore[arg-type]
        train_detector(settings, tmp_path / device)
        log = read_log(tmp_path / device / LOG)
        losses[device] = [line["total"] for line in log if line["kind"] == "train"]
    first = 1e-4 if precision == "fp32" else 2e-2
    assert losses["cuda"][0] == pytest.approx(losses["cpu"][0], rel=first)
    assert losses["cuda"] == pytest.approx(losses["cpu"], rel=0.2)
