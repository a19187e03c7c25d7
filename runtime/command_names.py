"""Commands as messages spell them: as modules, which run wherever the packages are installed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

TO_ONNX = "python -m export.to_onnx"
QUANTIZE = "python -m export.quantize"
TO_TRT = "python -m export.to_trt"
TO_DEEPSTREAM = "python -m export.to_deepstream"
TO_TRITON = "python -m export.to_triton"
CONVERT = "python -m train.convert"
VERIFY = "python -m export.verify"
DOCTOR = "python -m runtime.doctor"

CHECKPOINT_SUFFIXES = (".pt", ".pth", ".ckpt")  # of files that TO_ONNX makes a model of

_called_as: dict[str, str] = {}  # by module; filled while `atss` runs the module


def program(module: str) -> str:
    """The name that a command's help shows: `atss show` if `atss` runs the module, else `python -m runtime.show`."""
    return _called_as.get(module, f"python -m {module}")


@contextmanager
def called_as(name: str, module: str) -> Iterator[None]:
    """While the context is open, the module's help shows `name`."""
    _called_as[module] = name
    try:
        yield
    finally:
        del _called_as[module]
