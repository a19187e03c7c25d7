"""How the threads of torch wait for each other on a CPU."""

from __future__ import annotations

import os

# Loops for which a thread that is early spins before it sleeps. By GNU OpenMP's default, of hundreds of thousands,
# threads take the processors from each other wherever something else runs: training is half as fast beside it as with
# this number. Without spinning it is a fifth slower on a quiet machine (benchmarks/thread_waiting.py).
SPINS = 1000


def spin_briefly() -> None:
    """Let this process's threads spin for `SPINS` loops, unless the user's environment says how they wait.

    It has an effect before torch is imported only, and with GNU's OpenMP, which torch's wheels for Linux bring.
    """
    if not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & os.environ.keys():
        os.environ["GOMP_SPINCOUNT"] = str(SPINS)
