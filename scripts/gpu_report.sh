#!/usr/bin/env bash
# Measure everything that the documentation says about GPUs, on the GPU of this machine:
#   scripts/gpu_report.sh --minutes 20 --out runs/gpu_report   (may be interrupted; the same command continues)
#   scripts/gpu_report.sh --rehearse                           (no GPU: do the scripts work?)
set -euo pipefail
cd "$(dirname "$0")/.."
export OMP_WAIT_POLICY="${OMP_WAIT_POLICY:-PASSIVE}"
# It installs nothing, so that it also runs on a machine without a network.
python=python3
[ -x .venv/bin/python ] && python=.venv/bin/python
exec "$python" -m benchmarks.gpu.report "$@"
