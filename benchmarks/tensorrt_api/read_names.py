r"""Lists every name of an importable TensorRT library: classes with their members, enumerations, functions.

    python benchmarks/tensorrt_api/read_names.py tensorrt_rtx -o benchmarks/tensorrt_api/rtx-1.7.1.json

tests/test_tensorrt_names.py checks the toolkit's code against the committed lists, so a name that one version lacks is
found without that version. TensorRT for RTX installs anywhere. The Python wheels of standard TensorRT import without
the library and without a GPU, once the nine functions that they link to exist:

    pip download --no-deps -d wheels tensorrt-cu12-bindings==10.16.1.11 tensorrt-cu13-bindings==11.4.0.106
    python -m zipfile -e wheels/tensorrt_cu13_bindings-*.whl bindings
    cat > stub.c <<'C'
    void *createInferBuilder_INTERNAL(void) { return 0; }
    void *createInferRefitter_INTERNAL(void) { return 0; }
    void *createInferRuntime_INTERNAL(void) { return 0; }
    void *createNvOnnxParser_INTERNAL(void) { return 0; }
    void *createNvOnnxParserRefitter_INTERNAL(void) { return 0; }
    void *getBuilderPluginRegistry(void) { return 0; }
    void *getPluginRegistry(void) { return 0; }
    int getNvOnnxParserVersion(void) { return 0; }
    int initLibNvInferPlugins(void) { return 0; }
    C
    for name in nvinfer nvinfer_plugin nvonnxparser; do
        cc -shared -fPIC -Wl,-soname,lib$name.so.11 -o lib$name.so.11 stub.c
    done
    LD_LIBRARY_PATH=. PYTHONPATH=bindings python benchmarks/tensorrt_api/read_names.py tensorrt_bindings \
        -o benchmarks/tensorrt_api/tensorrt-11.4.0.json

For 10.16, use its wheel and .so.10.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any


def main() -> int:
    """Import the module and write its names as JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("module", help="module to import: tensorrt, tensorrt_rtx or tensorrt_bindings")
    parser.add_argument("-o", "--output", metavar="NAMES.json", help="file to write; default: print")
    options = parser.parse_args()
    text = to_json(names_of(importlib.import_module(options.module)))
    if options.output:
        Path(options.output).write_text(text, encoding="utf-8")
    else:
        sys.stdout.write(text)
    return 0


def names_of(module: ModuleType) -> dict[str, Any]:
    """The library's version, and its public names: enumerations with values, classes with members, all others."""
    found: dict[str, Any] = {"version": module.__version__, "enums": {}, "classes": {}, "others": []}
    for name in _public(module):
        value = getattr(module, name)
        if not isinstance(value, type):
            if not isinstance(value, ModuleType) and getattr(module, "tensorrt", module) is not value:
                found["others"].append(name)
        elif hasattr(value, "__members__"):
            found["enums"][name] = {key: int(member) for key, member in sorted(value.__members__.items())}
        else:
            found["classes"][name] = _public(value)
    return found


def to_json(names: dict[str, Any]) -> str:
    """One line per class, so that a difference between versions is readable."""
    parts = []
    for key, value in names.items():
        if isinstance(value, dict):
            lines = (f"    {json.dumps(name)}: {json.dumps(members)}" for name, members in value.items())
            parts.append(f"  {json.dumps(key)}: {{\n" + ",\n".join(lines) + "\n  }")
        else:
            parts.append(f"  {json.dumps(key)}: {json.dumps(value)}")
    return "{\n" + ",\n".join(parts) + "\n}\n"


def _public(holder: Any) -> list[str]:
    return [name for name in sorted(dir(holder)) if not name.startswith("_")]


if __name__ == "__main__":
    sys.exit(main())
