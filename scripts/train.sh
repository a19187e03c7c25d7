#!/usr/bin/env bash
# Train a recipe:  scripts/train.sh RECIPE --out runs/NAME [--setting value …]   (--help lists the settings)
set -euo pipefail
cd "$(dirname "$0")/.."
# Waiting threads that spin slow a shared machine down many times, and gain nothing on a quiet one.
export OMP_WAIT_POLICY="${OMP_WAIT_POLICY:-PASSIVE}"
[ -x .venv/bin/python ] || scripts/setup.sh
exec .venv/bin/python -m train "$@"
