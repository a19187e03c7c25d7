"""Networks of few channels train: oneDNN's convolutions for AVX-512 have destroyed the memory of such processes."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import nn

from train.model.resnet import Pointwise

# A process of its own, since the fault kills it; twenty backward passes, since the fault doesn't kill it at once.
TRAINS = """
import sys
import torch
from torchvision.models.resnet import BasicBlock
from train.model.resnet import ResNet

torch.manual_seed(0)
network = ResNet(BasicBlock, (1, 1, 1, 1), int(sys.argv[1])).to(memory_format=torch.channels_last)
images = torch.randn(2, 3, 192, 192).to(memory_format=torch.channels_last)
for _ in range(20):
    sum(level.square().mean() for level in network(images)).backward()
print(all(parameter.grad.isfinite().all() for parameter in network.parameters()))
"""


@pytest.mark.parametrize("channels", [2, 4, 8, 12, 16, 24])
def test_a_narrow_resnet_trains(channels: int) -> None:
    done = subprocess.run([sys.executable, "-c", TRAINS, str(channels)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "True"


@pytest.mark.parametrize("size_hw", [(8, 8), (7, 9), (1, 1)])
@pytest.mark.parametrize("stride", [1, 2])
def test_the_pointwise_convolution_and_its_gradients_are_those_of_a_convolution(
    size_hw: tuple[int, int], stride: int
) -> None:
    torch.manual_seed(0)
    ours = Pointwise(4, 6, 1, stride=stride).double()
    theirs = nn.Conv2d(4, 6, 1, stride=stride).double()
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 4, *size_hw, dtype=torch.float64)
    gradients = []
    for convolution in (ours, theirs):
        given = x.clone().requires_grad_()
        out = convolution(given)
        (out * torch.arange(out.numel(), dtype=torch.float64).reshape(out.shape)).sum().backward()
        assert convolution.weight.grad is not None
        gradients.append((out.detach(), given.grad, convolution.weight.grad))
    for got, wanted in zip(*gradients, strict=True):
        torch.testing.assert_close(got, wanted)


def test_an_exported_graph_has_the_strided_convolution_itself() -> None:
    """A slice in front of it would be one more value to round in a quantized file, and its noise."""
    program = torch.export.export(Pointwise(4, 6, 1, stride=2).eval(), (torch.randn(1, 4, 8, 8),))
    calls = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert calls == ["aten.conv2d.default"]
