#!/usr/bin/env bash
# Train a recipe:  scripts/train.sh RECIPE --out runs/NAME [--setting value …]   (--help lists the settings)
set -euo pipefail
cd "$(dirname "$0")/.."
[ -x .venv/bin/python ] || scripts/setup.sh
exec .venv/bin/python -m train "$@"
