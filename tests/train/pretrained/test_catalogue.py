"""Names of published checkpoints: their addresses, and the command that gets and converts them."""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torchvision

from runtime.backends.fastest import cache_folder
from runtime.errors import UserError
from runtime.home import home_folder
from train.__main__ import parse
from train.checkpoint import load_detector
from train.pretrained import __main__ as pretrained
from train.pretrained.catalogue import AUTHORS, CATALOGUE, find, list_names
from train.pretrained.dialects import DIALECTS

NAME = "tv_fcos_r50"


def test_every_entry_has_a_hash_an_https_address_and_a_dialect() -> None:
    assert len({one.url for one in CATALOGUE.values()}) == len(CATALOGUE)
    for name, published in CATALOGUE.items():
        assert published.url.startswith("https://")
        assert re.fullmatch(r"[0-9a-f]{8}", published.sha256)
        assert published.dialect in {dialect.name for dialect in DIALECTS}
        assert name.startswith(published.dialect.removesuffix("_v2"))
        assert find(name) is published
    listed = list_names()
    assert all(name in listed for name in (*CATALOGUE, *AUTHORS))


@pytest.mark.parametrize(
    ("name", "weights"),
    [
        ("tv_retinanet_r50", torchvision.models.detection.RetinaNet_ResNet50_FPN_Weights.COCO_V1),
        ("tv_retinanet_r50_v2", torchvision.models.detection.RetinaNet_ResNet50_FPN_V2_Weights.COCO_V1),
        ("tv_fcos_r50", torchvision.models.detection.FCOS_ResNet50_FPN_Weights.COCO_V1),
    ],
)
def test_torchvisions_entries_are_its_own(name: str, weights: torchvision.models.WeightsEnum) -> None:
    published = CATALOGUE[name]
    assert published.url == weights.url
    assert published.average_precision == weights.meta["_metrics"]["COCO-val2017"]["box_map"]
    assert published.mebibytes == weights.meta["_file_size"]


def test_names_that_are_not_downloaded() -> None:
    with pytest.raises(UserError, match="did you mean mm_atss_r50"):
        find("mm_atss_r55")
    with pytest.raises(UserError, match="non-commercial"):
        find("authors_atss_r50")
    with pytest.raises(UserError, match=r"published checkpoint: run .*train.pretrained mm_atss_r50 first"):
        parse(["mm_atss_r50", "--out", "run"])


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a small checkpoint under the name of its hash, in the catalogue as NAME."""
    model = torchvision.models.detection.fcos_resnet50_fpn(weights=None, weights_backbone=None, num_classes=2)
    folder = tmp_path / "mirror"
    folder.mkdir()
    torch.save(model.state_dict(), folder / "made.pth")
    digest = hashlib.sha256((folder / "made.pth").read_bytes()).hexdigest()
    (folder / "made.pth").rename(folder / f"made-{digest[:8]}.pth")
    made = replace(CATALOGUE[NAME], url=f"https://example.invalid/made-{digest[:8]}.pth", mebibytes=None)
    monkeypatch.setitem(CATALOGUE, NAME, made)
    monkeypatch.setenv("ATSS_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    return folder


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr("sys.argv", ["train.pretrained", *arguments])
    pretrained.main()


def test_a_folder_serves_as_mirror_and_licence_and_source_come_first(
    mirror: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(monkeypatch, NAME, "--from", str(mirror))
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines[:3]] == [f"{NAME}", "source", "licence"]
    assert "BSD-3-Clause" in lines[2]
    assert lines[-1] == f"{NAME}.pt"
    assert load_detector(tmp_path / f"{NAME}.pt").config.recipe == "tv_fcos"
    assert not (tmp_path / "home").exists()


def test_the_cache_is_used_offline_and_checked(
    mirror: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UserError, match="is not in"):
        run(monkeypatch, NAME, "--offline")
    monkeypatch.setenv("ATSS_OFFLINE", "1")
    with pytest.raises(UserError, match="is not in"):
        run(monkeypatch, NAME)
    with pytest.raises(UserError, match="is an address, and"):
        run(monkeypatch, NAME, "--from", "https://example.invalid/")
    (file,) = mirror.iterdir()
    cached = tmp_path / "home" / "checkpoints" / file.name
    cached.parent.mkdir(parents=True)
    file.rename(cached)
    run(monkeypatch, NAME)
    assert (tmp_path / f"{NAME}.pt").is_file()
    with pytest.raises(UserError, match="this run reads that file"):
        run(monkeypatch, NAME, "-o", str(cached))
    with cached.open("ab") as damaged:
        damaged.write(b"x")
    with pytest.raises(UserError, match="is damaged or another file"):
        run(monkeypatch, NAME)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "give the name"),
        (("x.pth", "--offline"), "are for names"),
        ((NAME, "--from", "http://example.org"), "expected https://"),
        ((NAME, "--from", "https://example.org/?a=b"), "without"),
        ((NAME, "--from", "nowhere"), "no file nowhere"),
        (("tv_fcs_r50",), f"did you mean {NAME}"),
        ((NAME, "--dialect", "mm_fco"), "no dialect 'mm_fco', did you mean mm_fcos?"),
        ((NAME, "--from", "https://localhost/\u00e4"), "not an address"),
        ((NAME, "--from", "https://a..b/"), "not an address"),
        ((NAME, "--from", f"https://{'a' * 70}.invalid/"), "not an address"),
    ],
)
def test_wrong_calls(arguments: tuple[str, ...], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ATSS_HOME", str(tmp_path / "home"))
    with pytest.raises(UserError, match=re.escape(said)):
        run(monkeypatch, *arguments)


def test_the_tests_have_a_home_of_their_own(tmp_path_factory: pytest.TempPathFactory) -> None:
    """So that none reads what the user has downloaded, or leaves something there."""
    base = tmp_path_factory.getbasetemp()
    assert home_folder().is_relative_to(base)
    assert cache_folder().is_relative_to(base)
    code = "from runtime.home import home_folder; print(home_folder())"
    started = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert Path(started.stdout.strip()).is_relative_to(base), "also of the processes that they start"


def test_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ATSS_HOME", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert home_folder() == tmp_path / "atss-toolkit"
    monkeypatch.setenv("ATSS_HOME", str(tmp_path / "own"))
    assert home_folder() == tmp_path / "own"
