"""State-dict files with a backbone's weights, read without running code, and loaded so that nothing is missing."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn

from runtime.errors import UserError

from ..integrity import DamagedError, check_finite
from ..torch_files import load_plain, why_not

State = dict[str, Tensor]


class WeightsError(UserError):
    """Backbone weights that can't be had or don't fit."""


def read_state(path: Path) -> State:
    """The tensors of a state-dict file by name. Raises WeightsError for a file with anything else in it."""
    try:
        state = load_plain(path)
    except Exception as error:  # torch raises many types for a foreign file; none of them may pass as a traceback
        raise WeightsError(f"{path} is not a state-dict file that can be loaded safely: {why_not(error)}") from error
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise WeightsError(f"{path} doesn't hold a state dict (names to tensors)")
    try:
        check_finite(state)
    except DamagedError as error:
        raise WeightsError(f"{path}: {error}; it is damaged, or its training diverged") from error
    return state


def load_state(module: nn.Module, state: State, ignored: tuple[str, ...], source: str, name: str) -> None:
    """Load weights from `source` into the backbone called `name`.

    Names that begin with one of `ignored` belong to the classifier and are left out. The offsets of deformable
    convolutions may be missing: they start at zero. Raises WeightsError for any other difference.
    """
    try:
        missing, unexpected = module.load_state_dict(state, strict=False)
    except RuntimeError as error:  # a name that both have, with other shapes
        raise WeightsError(f"the weights of {source} don't fit {name}: {str(error).splitlines()[1].strip()}") from error
    missing = [k for k in missing if ".offset." not in k]
    unexpected = [k for k in unexpected if not k.startswith(ignored)]
    if missing or unexpected:
        raise WeightsError(
            f"the weights of {source} don't fit {name}: "
            f"{len(missing)} missing ({', '.join(missing[:3])}), "
            f"{len(unexpected)} unknown ({', '.join(unexpected[:3])})"
        )
