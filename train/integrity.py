"""Whether a checkpoint's content is what was saved: checksums of the file, hashes of the tensors, finite numbers."""

from __future__ import annotations

import hashlib
import math
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

_NUMPY_TYPES = (torch.float16, torch.float32, torch.float64, torch.complex64, torch.complex128)
MOST_VALUES = 1_000_000  # of a checkpoint, tensors and plain ones


class DamagedError(ValueError):
    """Content that isn't what was saved, or that no training gives; the message is a clause."""


def check_archive(path: Path) -> None:
    """Check every entry of a file of torch, which is a zip archive, against its checksum.

    torch's own reader doesn't look at them. A file in torch's older format has none and passes. Raises DamagedError,
    also for compressed entries, which torch doesn't write, and OSError.
    """
    if not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            if packed := [entry.filename for entry in archive.infolist() if entry.compress_type != zipfile.ZIP_STORED]:
                raise DamagedError(f"its entry {packed[0]!r} is compressed")
            damaged = archive.testzip()
    except (zipfile.BadZipFile, RuntimeError, NotImplementedError, EOFError, UnicodeError, ValueError) as error:
        raise DamagedError(str(error)) from error
    if damaged is not None:
        raise DamagedError(f"the checksum of its entry {damaged!r} is wrong")


def tensors_sha256(content: Any) -> str:
    """SHA-256 over everything in nested dicts, lists and tuples: names, plain values, tensors with type, shape, bytes.

    Raises DamagedError for a tensor that isn't a plain array in memory.
    """
    digest = hashlib.sha256()
    for name, value in _leaves(content, ""):
        if isinstance(value, Tensor):
            digest.update(f"{name}: {value.dtype} {tuple(value.shape)}\n".encode())
            digest.update(_as_bytes(name, value))
        else:
            digest.update(f"{name}: {value!r}\n".encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def check_finite(content: Any) -> None:
    """Raise DamagedError that names the first number in nested dicts, lists and tuples that is NaN or infinite."""
    for name, value in _leaves(content, ""):
        if isinstance(value, Tensor) and (value.is_floating_point() or value.is_complex()):
            _require_array(name, value)
            # torch.isfinite takes nine times the processor time in one thread, more in several (torch 2.14).
            known = value if value.dtype in _NUMPY_TYPES else value.float()
            finite = bool(np.isfinite(known.detach().numpy()).all())
        else:
            finite = not isinstance(value, float) or math.isfinite(value)
        if not finite:
            raise DamagedError(f"{name} has numbers that are not finite (NaN or infinite)")


def _leaves(content: Any, name: str) -> Iterator[tuple[str, Any]]:
    """The values in nested dicts, lists and tuples, with names such as "state/3/exp_avg".

    Raises DamagedError for more than a checkpoint has: a foreign file may nest without end.
    """
    waiting, seen = [(name, content)], 0
    while waiting:
        name, value = waiting.pop()
        seen += 1
        if seen > MOST_VALUES:
            raise DamagedError(f"it has more than {MOST_VALUES} values")
        if isinstance(value, dict):
            waiting += [(f"{name}/{key}" if name else str(key), one) for key, one in reversed(value.items())]
        elif isinstance(value, list | tuple):
            waiting += [(f"{name}/{index}", one) for index, one in reversed(list(enumerate(value)))]
        else:
            yield name, value


def _as_bytes(name: str, tensor: Tensor) -> Any:
    _require_array(name, tensor)
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()


def _require_array(name: str, tensor: Tensor) -> None:
    """Raise DamagedError for sparse and other special tensors, and for views larger than their memory."""
    is_array = tensor.layout == torch.strided and not tensor.is_quantized and tensor.device.type != "meta"
    if not is_array or tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise DamagedError(f"{name} is a tensor of a kind that no checkpoint has")
