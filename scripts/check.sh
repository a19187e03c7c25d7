#!/usr/bin/env bash
# Lint, format, types, and the documentation's site, without changing anything:  scripts/check.sh
# scripts/check.sh --fix corrects what can be corrected.
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/setup.sh edge dev docs
if [ "${1:-}" = --fix ]; then
  .venv/bin/ruff check --fix .
  .venv/bin/ruff format .
else
  .venv/bin/ruff check .
  .venv/bin/ruff format --check .
fi
.venv/bin/mypy
# Broken links, pages outside the navigation and names that the API pages don't find are errors.
NO_MKDOCS_2_WARNING=1 .venv/bin/mkdocs build --quiet --strict
