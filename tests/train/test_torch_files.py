"""Files with code in them are refused without advice to run it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from runtime.errors import UserError
from train.checkpoint import read_checkpoint
from train.model.weights import read_state
from train.pretrained.convert import read_foreign


class Code:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


READERS = [read_checkpoint, read_foreign, read_state]


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("read", READERS)
def test_code_is_refused(read: Callable[[Path], Any], legacy: bool, tmp_path: Path) -> None:
    path = tmp_path / "evil.pt"
    torch.save({"x": Code(tmp_path / "ran")}, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(UserError) as caught:
        read(path)
    assert "weights_only" not in str(caught.value)
    assert "re-run" not in str(caught.value).lower()
    assert "refers to posix.mkdir" in str(caught.value) or os.name != "posix"
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("read", READERS)
def test_an_archive_of_torchscript(read: Callable[[Path], Any], tmp_path: Path) -> None:
    """torch advises the same for it, in other words."""
    import zipfile

    path = tmp_path / "script.pt"
    torch.save({"x": torch.zeros(1)}, path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("script/constants.pkl", b"")
    with pytest.raises(UserError) as caught:
        read(path)
    assert "weights_only" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"text", b"PK\x03\x04", b"\x80\x02}q\x00."])
@pytest.mark.parametrize("read", READERS)
def test_other_damage_is_one_line(read: Callable[[Path], Any], content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "damaged.pt"
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        read(path)
    assert "\n" not in str(caught.value)
    assert "weights_only" not in str(caught.value)
