#!/usr/bin/env bash
# The ATSS paper in miniature, on a CPU: trains its systems on `shapes`, several seeds each, and writes table and plots:
#   scripts/reproduce.sh --hours 4             (may be interrupted; the same command continues)
#   scripts/reproduce.sh --report --into docs  (only the report of the finished trainings)
set -euo pipefail
cd "$(dirname "$0")/.."
[ -x .venv/bin/python ] || scripts/setup.sh
exec .venv/bin/python -m train.reproduce "$@"
