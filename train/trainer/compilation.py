"""torch.compile of the criterion and of the network, and what happens where it can't compile.

Sizes that change from batch to batch are marked as dynamic, so that a handful of graphs serves a run: the number of
boxes G, and the canvas where images aren't cropped to one size. Canvas sides go in as numbers of 32 px, the network's
coarsest stride, so that the compiler sees that every level divides evenly.

Of this a GPU has run the compiled assignment; on a CPU all graphs are compiled and compared with the plain functions.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._dynamo import maybe_mark_dynamic
from torch._dynamo.exc import FailOnRecompileLimitHit
from torch._functorch import config as functorch

from runtime.names import unknown_name

from ..assign import Assigned
from ..config import CompileLoss, Config
from ..geometry.anchors import AnchorGrid, anchors_per_cell
from ..loss.criterion import Criterion, Losses, Normalizers, Targets, flatten
from ..model.backbones import COARSEST
from ..model.detector import DenseOutputs, DetectorNetwork
from .distributed import World

# Steps of a run in which compiled losses save more time than compiling them takes. An estimate: a minute, against some
# milliseconds of kernel launches a step.
PAYS_FROM = 10_000
# Warnings of the compiler that no user of this toolkit can act on.
_WARNINGS_OF_TORCH = (
    "The .grad attribute of a Tensor that is not a leaf",  # torch itself looks at the gradients of marked tensors
    "TensorFloat32 tensor cores",  # on a GPU: float32 products could be less exact and faster
    "`torch.jit",  # torch's own modules use what torch has deprecated
    "Please use the new API settings to control TF32",  # torch 2.9 and 2.10 read the setting by its old name themselves
)
# Modules that are not this toolkit's.
_OTHERS = r"(?!(train|export|runtime)\.)"


@contextmanager
def compiler_may_warn() -> Iterator[None]:
    """Inside, no warning of torch, Triton and what they use is raised, also where the process raises warnings.

    They are shown instead: what a compiler advises must not end a compilation. Warnings of this toolkit's modules are
    raised as before.
    """
    with warnings.catch_warnings():
        if any(action == "error" for action, *_ in warnings.filters):
            warnings.filterwarnings("default", module=_OTHERS)
        for message in _WARNINGS_OF_TORCH:
            warnings.filterwarnings("ignore", message)
        yield


class Compiler:
    """torch.compile for the functions of one run.

    Where a function can't be compiled (no C++ compiler, no Triton), `warn` receives one line with the cause, and all
    functions run as they are from then on. The backward pass is compiled together with the forward pass, so that its
    failure shows there too. A function whose graphs have become too many runs as it is for sizes that none of them
    fits, after one line to `warn`; which sizes these are depends on the order in which they came.
    """

    def __init__(self, warn: Callable[[str], None], backend: str | Callable[..., Any] = "inductor") -> None:
        self.failed = False
        self._is_full = False  # whether a function had too many graphs
        self._warn = warn
        self._backend = backend

    def compile(self, function: Callable[..., Any], mode: str | None = None) -> Callable[..., Any]:
        """The function as one graph, which is compiled at the first call; `mode` is torch.compile's."""
        compiled = torch.compile(function, fullgraph=True, backend=self._backend, mode=mode)

        def call(*arguments: Any) -> Any:
            if not self.failed:
                try:
                    with compiler_may_warn(), functorch.patch(force_non_lazy_backward_lowering=True):
                        return compiled(*arguments)
                except torch.OutOfMemoryError:
                    raise
                except FailOnRecompileLimitHit:
                    if not self._is_full:
                        self._is_full = True
                        self._warn("warning: torch.compile has its limit of graphs; further sizes run without it")
                except Exception as error:  # whatever a compiler, its tools or their absence raise
                    self.failed = True
                    self._warn(f"warning: torch.compile failed, training goes on without it: {_cause(error)}")
            return function(*arguments)

        return call


class CompiledCriterion:
    """A criterion whose assignment and losses are compiled; it is called as the criterion is.

    With `fixed_canvas` all batches have the same canvas.
    """

    def __init__(self, criterion: Criterion, compiler: Compiler, fixed_canvas: bool) -> None:
        self._anchors = anchors_per_cell(criterion.anchors)
        self._fixed = fixed_canvas
        self.grid = criterion.grid
        self._losses = compiler.compile(criterion.losses)
        self._count = compiler.compile(criterion.count)

        def assign(targets: Targets, canvas: Tensor, grid: AnchorGrid) -> Assigned:
            rows, columns = canvas.shape
            return criterion.assign(targets, (COARSEST * (rows - 1), COARSEST * (columns - 1)), grid)

        self._assign = compiler.compile(assign)

    def __call__(
        self,
        outputs: DenseOutputs,
        targets: Targets,
        canvas_hw: tuple[int, int],
        normalizers: Normalizers | None,
        assigned: Assigned,
    ) -> Losses:
        """The weighted losses, as `Criterion` has them."""
        flat = flatten(outputs, self._anchors)
        targets, grid = self._dynamic(targets, canvas_hw, assigned)
        if not self._fixed:
            _mark(flat, 1)
        return self._losses(flat, targets, assigned, grid, normalizers)

    def assign(self, targets: Targets, canvas_hw: tuple[int, int]) -> Assigned:
        """Which anchors are trained on which target, as `Criterion.assign` has it."""
        # The canvas goes in as the shape of a tensor without memory, since a number can't be marked; 1 is added because
        # the compiler takes a size of 1 as a constant.
        rows, columns = (side // COARSEST + 1 for side in canvas_hw)
        canvas = targets.boxes.new_empty(()).expand(rows, columns)
        grid = self.grid(canvas_hw, targets.boxes.device)
        if not self._fixed:
            maybe_mark_dynamic(canvas, [0, 1])
            _mark_anchors(grid)
        return self._assign(_with_dynamic_boxes(targets), canvas, grid)

    def normalizers(self, targets: Targets, canvas_hw: tuple[int, int], assigned: Assigned) -> Normalizers:
        """The divisors of the losses, as `Criterion.normalizers` has them."""
        targets, grid = self._dynamic(targets, canvas_hw, assigned)
        return self._count(targets, assigned, grid)

    def _dynamic(self, targets: Targets, canvas_hw: tuple[int, int], assigned: Assigned) -> tuple[Targets, AnchorGrid]:
        """The targets and the canvas's anchors; G, and N where it changes, are marked in them and in `assigned`."""
        grid = self.grid(canvas_hw, targets.boxes.device)
        if not self._fixed:
            _mark_anchors(grid)
            _mark(assigned, 1)
        return _with_dynamic_boxes(targets), grid


class CompiledNetwork(nn.Module):
    """A compiled detector network, with the model's own parameters.

    With `fixed_canvas` all batches have the same canvas; with `cuda_graphs` a GPU replays the network's kernels as one.
    """

    def __init__(self, model: DetectorNetwork, compiler: Compiler, fixed_canvas: bool, cuda_graphs: bool) -> None:
        super().__init__()
        self.model = model
        self._fixed = fixed_canvas

        def forward(tiles: Tensor) -> DenseOutputs:
            return model(tiles.flatten(3, 4).flatten(1, 2))

        self._forward = compiler.compile(forward, mode="reduce-overhead" if cuda_graphs else None)

    def forward(self, images: Tensor) -> DenseOutputs:
        """Dense outputs of canvases, as `DetectorNetwork` has them."""
        tiles = images.unflatten(2, (-1, COARSEST)).unflatten(1, (-1, COARSEST))  # [B, rows, 32, columns, 32, 3]
        if not self._fixed:
            maybe_mark_dynamic(tiles, [1, 3])
        return self._forward(tiles)


def has_fixed_canvas(config: Config) -> bool:
    """Whether all batches of a run have the same canvas, because images are cropped."""
    return config.augment.crop != (0, 0)


def compiles_loss(config: Config, device: torch.device) -> bool:
    """Whether a run compiles assignment and losses. Raises UserError for an unknown choice."""
    match config.run.compile_loss:
        case "auto":
            return device.type == "cuda" and config.schedule.steps >= PAYS_FROM
        case "always":
            return True
        case "never":
            return False
        case _:
            unknown_name(config.run.compile_loss, "run.compile_loss", CompileLoss)


def uses_cuda_graphs(config: Config, device: torch.device, world: World) -> bool:
    """Whether a compiled network is replayed as a CUDA graph.

    A graph has fixed shapes. Its gradients lie in the graph's own memory, which the next replay overwrites, so pieces
    of a batch, which add up their gradients, and several processes, which exchange them, do without.
    """
    return device.type == "cuda" and has_fixed_canvas(config) and config.run.accumulate == 1 and world.size == 1


def _with_dynamic_boxes(targets: Targets) -> Targets:
    """The targets with G marked as dynamic and at least 2: the compiler takes a size of 1 as a constant."""
    missing = 2 - targets.boxes.shape[1]
    if missing > 0:
        pad = nn.functional.pad
        boxes, labels, mask = targets
        targets = Targets(pad(boxes, (0, 0, 0, missing)), pad(labels, (0, missing)), pad(mask, (0, missing)))
    _mark(targets, 1)
    return targets


def _mark_anchors(grid: AnchorGrid) -> None:
    """Mark N of a canvas's anchors as dynamic; the number of levels is the same for all canvases."""
    _mark((grid.boxes, grid.points, grid.strides), 0)


def _mark(tensors: Iterable[Tensor | None], dimension: int) -> None:
    for tensor in tensors:
        if tensor is not None:
            maybe_mark_dynamic(tensor, dimension)


def _cause(error: Exception) -> str:
    """The innermost cause of an error, in one line."""
    cause: BaseException = error
    # torch's error of a backend holds the backend's own as an attribute; its own first line names the backend alone.
    while (inner := getattr(cause, "inner_exception", None) or cause.__cause__) is not None:
        cause = inner
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    return lines[0] if lines else type(cause).__name__
