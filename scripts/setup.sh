#!/usr/bin/env bash
# Make .venv and install the toolkit into it:  scripts/setup.sh [EXTRA …]   (edge, dev, docs, rtx, pycuda, …)
# Prints which hardware it installs for and why: `gpu` (CUDA 13) or `cuda12`, by the driver that nvidia-smi reports,
# otherwise `cpu`. An EXTRA cpu, gpu, cuda12 or cuda13 decides instead. If everything is installed, it prints one line.
set -euo pipefail
cd "$(dirname "$0")/.."
stamp=.venv/atss-toolkit-extras
have="" kept=""

# Sets hardware and why. 580 and 525 are the oldest drivers for CUDA 13 and 12 (runtime/machine/cuda_libraries.py).
choose_hardware() {
  local driver major
  hardware=cpu
  if ! command -v nvidia-smi >/dev/null 2>&1; then
    why="there is no nvidia-smi, so no NVIDIA GPU"
    return
  fi
  # Not piped: head would end the tool before its exit code says whether it failed.
  if ! driver=$(timeout 60 nvidia-smi --query-gpu=driver_version --format=csv,noheader 2>&1 </dev/null); then
    why="nvidia-smi is there, but fails: $(printf '%s' "$driver" | head -n 1)"
    return
  fi
  driver=$(printf '%s\n' "$driver" | head -n 1)
  major=${driver%%.*}
  case $major in
    "" | *[!0-9]*) why="nvidia-smi names no driver, but: ${driver:-nothing}" ;;
    *)
      if [ "$major" -ge 580 ]; then
        hardware=gpu why="driver $driver runs CUDA 13"
      elif [ "$major" -ge 525 ]; then
        hardware=cuda12 why="driver $driver runs CUDA 12; CUDA 13 wants 580"
      else
        why="driver $driver is too old for CUDA 12, which wants 525"
      fi
      ;;
  esac
}

is_hardware() { case $1 in cpu | gpu | cuda12 | cuda13) true ;; *) false ;; esac; }

# Sets python: the first of these names that starts a Python 3.10 or newer.
choose_python() {
  local candidate
  for candidate in "${PYTHON:-}" python3 python3.14 python3.13 python3.12 python3.11 python3.10; do
    if [ -n "$candidate" ] && "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
      python=$candidate
      return
    fi
  done
  echo "error: no Python 3.10 or newer found: install one, or name it with PYTHON=/path/to/python $0" >&2
  exit 2
}

install_toolkit() { # hardware, other extras
  # The two builds of ONNX Runtime share a module. Removing one of them breaks the other, so both are removed.
  local other=onnxruntime-gpu
  if [ "$1" != cpu ]; then other=onnxruntime; fi
  if .venv/bin/python -m pip show --quiet "$other" >/dev/null 2>&1; then
    .venv/bin/python -m pip uninstall --quiet --yes onnxruntime onnxruntime-gpu 2>/dev/null || true
  fi
  .venv/bin/python -m pip install --quiet --disable-pip-version-check --editable ".[$1${2:+,$2}]"
}

# Extras add up: installed extras stay. The stamp's second line is the reason for keeping the hardware, if there is one.
{ read -r have && read -r kept; } 2>/dev/null <"$stamp" || true
sum=$(cksum <pyproject.toml)
had_hardware="" others="" asked=""
for extra in $(printf '%s' "${have#*:}" | tr , ' '); do
  if is_hardware "$extra"; then had_hardware=$extra; else others="$others $extra"; fi
done
for extra in "$@"; do
  if is_hardware "$extra"; then asked=$extra; else others="$others $extra"; fi
done
if [ -n "$asked" ]; then
  hardware=$asked why="asked for" kept="asked for before"
elif [ -n "$had_hardware" ] && [ -n "$kept" ]; then
  hardware=$had_hardware why=$kept
else
  choose_hardware
  if [ "$hardware" = cpu ] && [ -n "$had_hardware" ] && [ "$had_hardware" != cpu ]; then
    why="installed before, and runs on the processor too; $why" hardware=$had_hardware
  fi
fi
others=$(printf '%s\n' $others | sort -u | paste -sd, -)
wanted=$hardware${others:+,$others}
if [ "$have" = "$sum:$wanted" ] && [ -x .venv/bin/python ]; then
  echo "setup: .venv has atss-toolkit[$wanted] already ($hardware: $why)"
  if [ -n "$asked" ]; then printf '%s\n%s\n' "$have" "$kept" >"$stamp"; fi
  exit 0
fi

if [ ! -x .venv/bin/python ]; then
  choose_python
  echo "setup: making .venv with $("$python" --version) ($(command -v "$python"))"
  "$python" -m venv .venv || {
    echo "error: $python can't make virtual environments: install its venv module (on Debian: python3-venv)" >&2
    exit 2
  }
fi
echo "setup: chose $hardware ($why)"
echo "setup: installing atss-toolkit[$wanted] into .venv; PyTorch is large, this takes a few minutes"
if ! install_toolkit "$hardware" "$others"; then
  if [ "$hardware" = cpu ] || [ -n "$asked" ]; then
    echo "error: pip could not install atss-toolkit[$wanted]; its reason stands above" >&2
    exit 1
  fi
  echo "setup: atss-toolkit[$wanted] cannot be installed here (pip's reason stands above), so cpu is taken in its place"
  wanted=cpu${others:+,$others} kept="$hardware could not be installed before; scripts/setup.sh $hardware tries again"
  install_toolkit cpu "$others"
fi
printf '%s\n%s\n' "$sum:$wanted" "$kept" >"$stamp"
echo "setup: done; .venv/bin/python -m runtime.doctor says what this machine can run"
