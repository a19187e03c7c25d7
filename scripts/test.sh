#!/usr/bin/env bash
# Set up what is missing and run the tests:  scripts/test.sh [pytest options]
#   scripts/test.sh -m slow     the slow ones          scripts/test.sh -m gpu     those that need an NVIDIA GPU
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/setup.sh edge dev
exec .venv/bin/python -m pytest "$@"
