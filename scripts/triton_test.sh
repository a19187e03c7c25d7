#!/usr/bin/env bash
# The tests of Triton serving, on a real server, without a GPU:  scripts/triton_test.sh [pytest options]
# The server is that of the wheel nvidia-pytriton (tritonserver 2.51, its Python backend only). Its Python process needs
# older NumPy and OpenCV than the toolkit's .venv has, so it gets an environment of its own: .triton, or ATSS_TRITON_ENV.
set -euo pipefail
cd "$(dirname "$0")/.."
export OMP_WAIT_POLICY="${OMP_WAIT_POLICY:-PASSIVE}" OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
if ! .venv/bin/python -c 'import pytest, tritonclient.grpc' 2>/dev/null; then scripts/setup.sh edge dev; fi
mkdir -p "${ATSS_TRITON_ENV:=.triton}"
ATSS_TRITON_ENV=$(cd "$ATSS_TRITON_ENV" && pwd)
export ATSS_TRITON_ENV
python="$ATSS_TRITON_ENV/bin/python"
requirements=(nvidia-pytriton==0.7.0 "numpy>=1.26,<2" "opencv-python-headless>=4.9,<4.12" "pillow>=11,<15" "simplejpeg>=1.8,<2" "pycocotools>=2.0.8,<3" "tqdm>=4.66,<5" "onnxruntime>=1.20,<2")
if [ "$(cat "$ATSS_TRITON_ENV/stamp" 2>/dev/null)" != "${requirements[*]}" ]; then
  echo "triton: installing the server into $ATSS_TRITON_ENV"
  .venv/bin/python -m venv "$ATSS_TRITON_ENV"
  "$python" -m pip install --quiet --disable-pip-version-check "${requirements[@]}"
  echo "${requirements[*]}" >"$ATSS_TRITON_ENV/stamp"
fi
# Whatever clone runs the tests, the server imports its toolkit.
site=$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
pwd >"$site/atss_toolkit.pth"
# The Python backend looks for its stub beside its library; the wheel keeps a stub for each version of Python apart.
backend="$ATSS_TRITON_ENV/backends/python"
mkdir -p "$backend"
version=$("$python" -c 'import sys; print(f"{sys.version_info[0]}.{sys.version_info[1]}")')
stub="$site/pytriton/tritonserver/python_backend_stubs/$version/triton_python_backend_stub"
if [ ! -f "$stub" ]; then
  echo "error: nvidia-pytriton has no stub for Python $version, which .venv has; it has those of 3.8 to 3.13" >&2
  exit 2
fi
cp "$site"/pytriton/tritonserver/backends/python/* "$backend/" 2>/dev/null || true
cp "$stub" "$backend/"
libraries=$("$python" -c 'import sysconfig; print(sysconfig.get_config_var("LIBDIR"))')
# The stub embeds Python, which it finds by PATH, and links libpython and the wheel's own libraries.
cat >"$ATSS_TRITON_ENV/serve" <<END
#!/bin/sh
export PATH="$ATSS_TRITON_ENV/bin:\$PATH" LD_LIBRARY_PATH="$site/nvidia_pytriton.libs:$libraries\${LD_LIBRARY_PATH:+:\$LD_LIBRARY_PATH}"
exec "$site/pytriton/tritonserver/bin/tritonserver" --backend-directory="$ATSS_TRITON_ENV/backends" "\$@"
END
chmod +x "$ATSS_TRITON_ENV/serve"
if [ $# -gt 0 ]; then
  exec .venv/bin/python -m pytest -m triton "$@"
fi
.venv/bin/python -m pytest -m triton tests/triton
measured="$ATSS_TRITON_ENV/measured"
if [ ! -f "$measured/model.onnx" ]; then
  .venv/bin/python -m train.shapes "$measured" --train 1 --val 64 --size 480
  .venv/bin/python benchmarks/random_model.py atss_tiny --sides 240 320 --annotations "$measured/val.json" -o "$measured/model.onnx"
fi
.venv/bin/python benchmarks/triton_throughput.py "$measured/model.onnx" --images "$measured/val"
