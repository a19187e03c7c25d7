#!/usr/bin/env bash
# Make .venv and install the toolkit into it:  scripts/setup.sh [EXTRA …]   (edge, dev, rtx, pycuda)
# The extra `gpu` is chosen where nvidia-smi answers, else `cpu`. Does nothing when all that is there already.
set -euo pipefail
cd "$(dirname "$0")/.."

if nvidia-smi >/dev/null 2>&1; then hardware=gpu; else hardware=cpu; fi
stamp=.venv/atss-toolkit-extras
have=$(cat "$stamp" 2>/dev/null || true)
sum=$(cksum <pyproject.toml)
# What is installed stays installed: extras add up.
if [ "${have%%:*}" = "$sum" ]; then extras="${have#*:}"; else extras=""; fi
wanted=$(printf '%s\n' "$hardware" ${extras//,/ } "$@" | sort -u | paste -sd, -)
if [ "$have" = "$sum:$wanted" ]; then exit 0; fi

if [ ! -x .venv/bin/python ]; then
  python=""
  for candidate in "${PYTHON:-}" python3 python3.13 python3.12 python3.11 python3.10; do
    if [ -n "$candidate" ] && "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
      python=$candidate
      break
    fi
  done
  if [ -z "$python" ]; then
    echo "error: no Python 3.10 or newer found: install one, or name it with PYTHON=/path/to/python $0" >&2
    exit 2
  fi
  echo "setup: making .venv with $("$python" --version)"
  "$python" -m venv .venv || {
    echo "error: $python can't make virtual environments: install its venv module (on Debian: python3-venv)" >&2
    exit 2
  }
fi
echo "setup: installing atss-toolkit[$wanted]; PyTorch is large, this takes a few minutes"
.venv/bin/python -m pip install --quiet --disable-pip-version-check --editable ".[$wanted]"
echo "$sum:$wanted" >"$stamp"
