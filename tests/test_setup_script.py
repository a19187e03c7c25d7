"""`scripts/setup.sh` with stand-ins for nvidia-smi and pip: what it chooses, says and installs."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(sys.platform == "win32" or shutil.which("bash") is None, reason="a script for bash")

# Records what it is asked to do. `installed` lists distributions, `refused` is an extra that can't be installed.
PYTHON = """#!/bin/sh
echo "$@" >> {folder}/asked
case "$*" in
  *"pip show"*) for last; do :; done; grep -qx "$last" {folder}/installed ;;
  *"pip install"*)
    for refused in $(cat {folder}/refused); do
      case "$*" in *"$refused"*) echo "no such wheel" >&2; exit 1 ;; esac
    done ;;
esac
"""


@dataclass
class Clone:
    """A clone with nothing in it but what the script reads; its .venv has a Python that only takes notes."""

    folder: Path

    def run(self, *extras: str) -> subprocess.CompletedProcess[str]:
        (self.folder / "asked").write_text("")
        return subprocess.run(
            ["bash", "scripts/setup.sh", *extras],
            cwd=self.folder,
            env={"PATH": f"{self.folder}/bin"},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def installed_by(self, *extras: str) -> tuple[str, str]:
        """What was installed, and what was said."""
        done = self.run(*extras)
        assert (done.returncode, done.stderr) == (0, ""), done.stderr
        asked = [line for line in (self.folder / "asked").read_text().splitlines() if "pip install" in line]
        return asked[-1].split()[-1] if asked else "", done.stdout

    def nvidia_smi(self, script: str) -> None:
        (self.folder / "bin/nvidia-smi").write_text(f"#!/bin/sh\n{script}\n")
        (self.folder / "bin/nvidia-smi").chmod(0o755)


@pytest.fixture
def clone(tmp_path: Path, repository: Path) -> Clone:
    for name in ("scripts", "bin", ".venv/bin"):
        (tmp_path / name).mkdir(parents=True)
    shutil.copy(repository / "scripts/setup.sh", tmp_path / "scripts")
    (tmp_path / "pyproject.toml").write_text("[project]\n")
    for name in ("installed", "refused"):
        (tmp_path / name).write_text("")
    (tmp_path / ".venv/bin/python").write_text(PYTHON.format(folder=tmp_path))
    (tmp_path / ".venv/bin/python").chmod(0o755)
    for name in ("bash", "sh", "dirname", "cat", "cksum", "sort", "paste", "tr", "head", "grep", "timeout"):
        (tmp_path / "bin" / name).symlink_to(str(shutil.which(name)))  # no nvidia-smi, whatever this machine has
    return Clone(tmp_path)


def test_without_a_gpu(clone: Clone) -> None:
    wanted, said = clone.installed_by()
    assert wanted == ".[cpu]"
    assert "chose cpu (there is no nvidia-smi, so no NVIDIA GPU)" in said


@pytest.mark.parametrize(
    ("script", "hardware", "why"),
    [
        ("echo 580.65.06", "gpu", "driver 580.65.06 runs CUDA 13"),
        ("echo 595.10; echo 595.10", "gpu", "driver 595.10 runs CUDA 13"),
        ("echo 550.54.14", "cuda12", "driver 550.54.14 runs CUDA 12; CUDA 13 wants 580"),
        ("echo 470.1", "cpu", "driver 470.1 is too old for CUDA 12, which wants 525"),
        ("echo NVIDIA-SMI has failed; exit 9", "cpu", "nvidia-smi is there, but fails: NVIDIA-SMI has failed"),
        ("echo No devices were found", "cpu", "nvidia-smi names no driver, but: No devices were found"),
        ("true", "cpu", "nvidia-smi names no driver, but: nothing"),
    ],
)
def test_what_the_driver_decides(clone: Clone, script: str, hardware: str, why: str) -> None:
    clone.nvidia_smi(script)
    wanted, said = clone.installed_by("edge")
    assert wanted == f".[{hardware},edge]"
    assert f"setup: chose {hardware} ({why})\n" in said
    assert "runtime.doctor" in said
    wanted, said = clone.installed_by("edge")
    assert wanted == "", "the second time there is nothing to do"
    assert said.count("\n") == 1
    assert f"already ({hardware}: {why})" in said


def test_extras_add_up(clone: Clone) -> None:
    clone.nvidia_smi("exit 1")
    assert clone.installed_by("edge")[0] == ".[cpu,edge]"
    assert clone.installed_by("dev")[0] == ".[cpu,dev,edge]"
    assert clone.installed_by("edge")[0] == ""
    (clone.folder / "pyproject.toml").write_text("[project]\nname='changed'\n")
    assert clone.installed_by()[0] == ".[cpu,dev,edge]"


def test_a_driver_that_comes_later_and_goes_again(clone: Clone) -> None:
    clone.nvidia_smi("exit 1")
    assert clone.installed_by()[0] == ".[cpu]"
    clone.nvidia_smi("echo 580.65.06")
    (clone.folder / "installed").write_text("onnxruntime\n")
    assert clone.installed_by()[0] == ".[gpu]", "not of both, which share a module"
    assert "pip uninstall --quiet --yes onnxruntime onnxruntime-gpu" in (clone.folder / "asked").read_text()
    (clone.folder / "installed").write_text("onnxruntime-gpu\n")
    clone.nvidia_smi("exit 1")
    wanted, said = clone.installed_by()
    assert wanted == ""
    assert "gpu: installed before, and runs on the processor too; nvidia-smi is there, but fails" in said


def test_what_is_asked_for_is_taken_and_kept(clone: Clone) -> None:
    clone.nvidia_smi("echo 580.65.06")
    wanted, said = clone.installed_by("cpu")
    assert (wanted, "chose cpu (asked for)" in said) == (".[cpu]", True)
    wanted, said = clone.installed_by("dev")
    assert (wanted, "chose cpu (asked for before)" in said) == (".[cpu,dev]", True)
    assert clone.installed_by("cuda12")[0] == ".[cuda12,dev]"


def test_what_cannot_be_installed(clone: Clone) -> None:
    clone.nvidia_smi("echo 580.65.06")
    (clone.folder / "refused").write_text("gpu")
    done = clone.run("edge")
    assert done.returncode == 0
    assert "no such wheel" in done.stderr
    assert "atss-toolkit[gpu,edge] cannot be installed here" in done.stdout
    assert (clone.folder / "asked").read_text().splitlines()[-1].endswith(".[cpu,edge]")
    wanted, said = clone.installed_by("edge")
    assert (wanted, "gpu could not be installed before; scripts/setup.sh gpu tries again" in said) == ("", True)
    done = clone.run("gpu")
    assert done.returncode == 1, "who asked for it is not given another"
    assert "error: pip could not install atss-toolkit[gpu,edge]" in done.stderr
    (clone.folder / "refused").write_text("")
    assert clone.installed_by("gpu")[0] == ".[gpu,edge]"


def test_no_python(clone: Clone) -> None:
    shutil.rmtree(clone.folder / ".venv")
    for name in ("python3", "python3.14", "python3.13", "python3.12", "python3.11", "python3.10"):
        (clone.folder / "bin" / name).write_text("#!/bin/sh\nexit 1\n")
        (clone.folder / "bin" / name).chmod(0o755)
    done = clone.run("cpu")
    assert done.returncode == 2
    assert done.stderr.startswith("error: no Python 3.10 or newer found: install one, or name it with PYTHON=")
