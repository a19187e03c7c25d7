#!/usr/bin/env bash
# Lint, format and types, without changing anything:  scripts/check.sh      (scripts/check.sh --fix changes)
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/setup.sh edge dev
if [ "${1:-}" = --fix ]; then
  .venv/bin/ruff check --fix .
  .venv/bin/ruff format .
else
  .venv/bin/ruff check .
  .venv/bin/ruff format --check .
fi
.venv/bin/mypy
