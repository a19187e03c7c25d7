r"""Lists the interface of an importable TensorRT library: enumerations, classes with their members, functions.

    python benchmarks/tensorrt_api/read_names.py tensorrt_rtx -o benchmarks/tensorrt_api/rtx-1.7.1.json

tests/test_tensorrt_names.py and tests/test_tensorrt_signatures.py check the toolkit's code against the committed
lists, so a use that one version doesn't allow is found without that version. docstrings.py says how members are
written; members that a class inherits from a listed class are in that class's list alone. TensorRT for RTX installs
anywhere. The Python wheels of standard TensorRT import without the library and without a GPU, once the nine functions
that they link to exist:

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

For 10.16, use its wheel and .so.10. The list names the wheel that the bindings came from.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.tensorrt_api.docstrings import Entry, entry_of, function_entry

_SPECIAL = ("__init__", "__len__", "__getitem__", "__iter__")


def main() -> int:
    """Import the module and write its interface as JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("module", help="module to import: tensorrt, tensorrt_rtx or tensorrt_bindings")
    parser.add_argument("-o", "--output", metavar="NAMES.json", help="file to write; default: print")
    options = parser.parse_args()
    text = to_json(interface_of(importlib.import_module(options.module)))
    if options.output:
        Path(options.output).write_text(text, encoding="utf-8")
    else:
        sys.stdout.write(text)
    return 0


def interface_of(module: ModuleType) -> dict[str, Any]:
    """The library's version and wheel; enumerations with values, classes with members, and all other public names.

    Raises DocstringError for a member whose docstring has no signature.
    """
    found: dict[str, Any] = {
        "version": module.__version__,
        "wheel": _wheel(module),
        "enums": {},
        "classes": {},
        "others": {},
    }
    for name in _public(module):
        value = getattr(module, name)
        if not isinstance(value, type):
            if not isinstance(value, ModuleType) and getattr(module, "tensorrt", module) is not value:
                is_function = callable(value) and hasattr(value, "__name__") and not hasattr(type(value), "__members__")
                entry = function_entry(name, value) if is_function else f"constant {type(value).__qualname__}"
                found["others"][name] = entry
        elif hasattr(value, "__members__"):
            found["enums"][name] = {key: int(member) for key, member in sorted(value.__members__.items())}
        else:
            found["classes"][name] = _class(module, value)
    return found


def _wheel(module: ModuleType) -> str:
    """Name and version of the package that holds the bindings' classes."""
    package = module.Builder.__module__.split(".")[0]
    (name,) = set(importlib.metadata.packages_distributions()[package])
    return f"{name.replace('_', '-')} {importlib.metadata.version(name)}"


def _class(module: ModuleType, value: type) -> dict[str, Entry]:
    """The members of a class by name; `bases` are the listed classes that it inherits more from."""
    bases = [base for base in value.__mro__[1:] if getattr(module, base.__name__, None) is base]
    inherited = {name for base in bases for name in dir(base)}
    members: dict[str, Entry] = {"bases": [base.__name__ for base in bases]} if bases else {}
    for name in [*(name for name in _SPECIAL if hasattr(value, name)), *_public(value)]:
        if name in vars(value) or name not in inherited:
            entry = entry_of(value, name)
            if entry is not None:
                members[name] = entry
    return members


def to_json(interface: dict[str, Any]) -> str:
    """One line per member, so that a difference between versions is readable."""
    parts = []
    for key, value in interface.items():
        if key in ("classes", "enums"):
            lines = [f"    {json.dumps(name)}: {_members(members, key)}" for name, members in value.items()]
            parts.append(f"  {json.dumps(key)}: {{\n" + ",\n".join(lines) + "\n  }")
        else:
            parts.append(f"  {json.dumps(key)}: {json.dumps(value)}")
    return "{\n" + ",\n".join(parts) + "\n}\n"


def _members(members: dict[str, Any], key: str) -> str:
    if key == "enums" or not members:
        return json.dumps(members)
    return (
        "{\n"
        + ",\n".join(f"      {json.dumps(name)}: {json.dumps(entry)}" for name, entry in members.items())
        + "\n    }"
    )


def _public(holder: Any) -> list[str]:
    return [name for name in sorted(dir(holder)) if not name.startswith("_")]


if __name__ == "__main__":
    sys.exit(main())
