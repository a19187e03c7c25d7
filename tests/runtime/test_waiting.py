"""The threads of commands spin briefly, unless the user's environment says otherwise."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from runtime.waiting import SPINS

pytest.importorskip("torch")
VARIABLES = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
START = "from runtime.waiting import spin_briefly; spin_briefly(); import torch"
# As `atss` and `python -m train` begin; `--help` of a recipe imports torch.
COMMANDS = {
    "atss": "import sys; sys.argv[1:] = ['train', 'atss_tiny', '--help']; from runtime.cli import main; main()",
    "train": (
        "import runpy, sys; sys.argv[1:] = ['atss_tiny', '--help']; "
        "runpy.run_module('train', run_name='__main__', alter_sys=True)"
    ),
}


def spins(code: str, **given: str) -> str:
    """The spin count that OpenMP says it has, in a process that runs the code."""
    environment = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    environment |= {"OMP_DISPLAY_ENV": "VERBOSE", **given}
    ran = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    if "GOMP_SPINCOUNT" not in ran.stderr:
        pytest.skip("this torch has another OpenMP than GNU's")
    found = re.search(r"GOMP_SPINCOUNT = '(\w+)'", ran.stderr)
    assert found is not None
    return found[1]


def test_openmp_takes_the_number_of_a_process_that_runs_already() -> None:
    assert int(spins("import torch")) > 100 * SPINS
    assert spins(START) == str(SPINS)


@pytest.mark.parametrize("given", [{"GOMP_SPINCOUNT": "77"}, {"OMP_WAIT_POLICY": "PASSIVE"}])
def test_what_the_user_says_holds(given: dict[str, str]) -> None:
    assert spins(START, **given) == spins("import torch", **given) != str(SPINS)


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_begin_so(command: str) -> None:
    assert spins(COMMANDS[command]) == str(SPINS)
