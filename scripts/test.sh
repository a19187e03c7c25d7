#!/usr/bin/env bash
# Set up what is missing and run the tests:  scripts/test.sh [pytest options]
#   scripts/test.sh -m slow     the slow ones          scripts/test.sh -m gpu     those that need an NVIDIA GPU
set -euo pipefail
cd "$(dirname "$0")/.."
# Threads that spin while they wait make a shared machine many times slower, and gain nothing on a quiet one.
export OMP_WAIT_POLICY="${OMP_WAIT_POLICY:-PASSIVE}"
scripts/setup.sh edge dev
if [ $# -eq 0 ]; then
  # All of them: a process of one thread for each core shares the files out. What options choose runs in one process.
  export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
  set -- --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder
fi
exec .venv/bin/python -m pytest "$@"
