#!/usr/bin/env bash
# Install what is missing and run the tests:  scripts/test.sh [pytest options]
#   scripts/test.sh -m slow     the slow tests         scripts/test.sh -m gpu     the tests that need an NVIDIA GPU
set -euo pipefail
cd "$(dirname "$0")/.."
# Tests share the machine with each other: a waiting thread that spins would slow the others down.
export OMP_WAIT_POLICY="${OMP_WAIT_POLICY:-PASSIVE}"
scripts/setup.sh edge dev
if [ $# -eq 0 ]; then
  # The whole suite runs in parallel, one process with one thread per core. A selection runs in one process.
  export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
  set -- --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder
fi
exec .venv/bin/python -m pytest "$@"
