#!/usr/bin/env bash
# Mutated inputs for every reader of untrusted files:  scripts/fuzz.sh [--inputs 20000] [--minutes 60] [--only TARGET] …
# Prints a table and writes it, a log and every input that failed below runs/fuzz; a second call goes on with the run.
set -euo pipefail
cd "$(dirname "$0")/.."
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" OMP_WAIT_POLICY="${OMP_WAIT_POLICY:-PASSIVE}"
PYTHONPATH="$PWD" exec .venv/bin/python -m tests.fuzz.run "$@"
