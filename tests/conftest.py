"""Fixtures for every package's tests."""

from __future__ import annotations

import fcntl
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
# Begun first where several processes share the files out, lest one works on such a file when the others have ended.
# The first two have nothing to wait for from one another.
LONG_FILES = (
    "tests/export/trt/test_engine.py",
    "tests/test_docs.py",
    "tests/test_end_to_end.py",
    "tests/train/trainer/test_distributed.py",
    "tests/export/verification/test_planted_defects.py",
    "tests/export/trt/test_to_trt.py",
    "tests/export/quantization/test_quantize.py",
    "tests/export/quantization/test_conversion.py",
    "tests/train/trainer/test_resume.py",
)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not hasattr(config, "workerinput"):  # pytest-xdist's mark of one of its processes
        return
    ranks = {name: rank for rank, name in enumerate(LONG_FILES)}
    items.sort(key=lambda item: ranks.get(item.nodeid.partition("::")[0], len(ranks)))


@pytest.fixture(autouse=True, scope="session")
def _ctrl_c_arrives() -> None:
    """Processes that tests start and interrupt inherit an ignored SIGINT, as a suite run in the background has it."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What the toolkit downloads and remembers is neither taken from the user who runs the tests nor left to them."""
    os.environ["ATSS_HOME"] = str(tmp_path_factory.getbasetemp() / "home")
    os.environ["ATSS_TOOLKIT_CACHE"] = str(tmp_path_factory.getbasetemp() / "cache")


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """A folder that `make` fills in the process that asks first, for all of pytest-xdist's; the others wait."""
    base = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent
    folder, done = base / name, base / f"{name}.done"
    with (base / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            folder.mkdir(exist_ok=True)
            make(folder)
            done.touch()
    return folder


@pytest.fixture(scope="session")
def repository() -> Path:
    return REPOSITORY


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """Folder of reference data kept outside the repository: ATSS_SHARED, or `shared` beside the repository."""
    folder = Path(os.environ.get("ATSS_SHARED", REPOSITORY.parent / "shared"))
    if not (folder / "data").is_dir():
        pytest.skip(f"no reference data in {folder}; set ATSS_SHARED to its folder")
    return folder
