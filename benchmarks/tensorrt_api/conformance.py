"""Finds TensorRT names in a module's source that some version of TensorRT doesn't have, without running it.

The check relies on these rules, and enforces them in every module that uses the name `trt`:
- the library is named `trt` (`import tensorrt as trt`, or a parameter);
- a variable, parameter or attribute that holds one of its objects has the name that VARIABLES gives to its class;
- nothing is looked up with getattr, hasattr or setattr.
A name that only one flavor has is listed in ONLY_IN with its reason, and is used only inside an `if` on `flavor` or in
a function whose name ends in `_rtx` or `_tensorrt`.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

LISTS = sorted(Path(__file__).parent.glob("*.json"))
VARIABLES = {
    "builder": "Builder",
    "builder_config": "IBuilderConfig",
    "network": "INetworkDefinition",
    "onnx_parser": "OnnxParser",
    "parser_error": "ParserError",
    "optimization_profile": "IOptimizationProfile",
    "timing_cache": "ITimingCache",
    "trt_tensor": "ITensor",
    "host_memory": "IHostMemory",
    "logger": "ILogger",
    "trt_runtime": "Runtime",
    "engine": "ICudaEngine",
    "inspector": "EngineInspector",
    "context": "IExecutionContext",
    "runtime_config": "IRuntimeConfig",
    "runtime_cache": "IRuntimeCache",
}
MAKES = {
    "create_network": "INetworkDefinition",
    "create_builder_config": "IBuilderConfig",
    "create_optimization_profile": "IOptimizationProfile",
    "create_timing_cache": "ITimingCache",
    "build_serialized_network": "IHostMemory",
    "get_error": "ParserError",
    "get_input": "ITensor",
    "get_output": "ITensor",
    "deserialize_cuda_engine": "ICudaEngine",
    "create_engine_inspector": "EngineInspector",
    "create_execution_context": "IExecutionContext",
    "create_runtime_config": "IRuntimeConfig",
    "create_runtime_cache": "IRuntimeCache",
}
# Class and member (None: the class itself) → the flavor that has it, and why it is used.
ONLY_IN: dict[tuple[str, str | None], tuple[str, str]] = {
    ("ComputeCapability", None): ("rtx", "ahead-of-time builds name the GPUs"),
    ("IBuilderConfig", "num_compute_capabilities"): ("rtx", "ahead-of-time builds name the GPUs"),
    ("IBuilderConfig", "set_compute_capability"): ("rtx", "ahead-of-time builds name the GPUs"),
    ("Runtime", "get_engine_validity"): ("rtx", "asks about an engine before it is loaded"),
    ("EngineValidity", None): ("rtx", "asks about an engine before it is loaded"),
    ("IRuntimeConfig", "cuda_graph_strategy"): ("rtx", "it captures CUDA graphs by itself"),
    ("CudaGraphStrategy", None): ("rtx", "it captures CUDA graphs by itself"),
    ("IRuntimeConfig", "create_runtime_cache"): ("rtx", "keeps compiled kernels between runs"),
    ("IRuntimeConfig", "set_runtime_cache"): ("rtx", "keeps compiled kernels between runs"),
    ("IRuntimeConfig", "get_runtime_cache"): ("rtx", "keeps compiled kernels between runs"),
    ("IRuntimeCache", None): ("rtx", "keeps compiled kernels between runs"),
}


class Names(NamedTuple):
    """The names of one library."""

    label: str  # "rtx 1.7.1.116"
    flavor: str
    version: str
    members: dict[str, set[str]]  # of classes and enumerations
    others: set[str]  # functions and constants of the module

    def has(self, owner: str, member: str | None) -> bool:
        """Whether the library has this class, or this member of it."""
        return owner in self.members and (member is None or member in self.members[owner])


def load(path: Path) -> Names:
    """Read a list that read_names.py wrote; the file's name begins with the flavor."""
    found = json.loads(path.read_text(encoding="utf-8"))
    flavor = path.name.split("-")[0]
    members = {name: set(names) | {"name", "value"} for name, names in found["enums"].items()}
    members |= {name: set(names) for name, names in found["classes"].items()}
    return Names(f"{flavor} {found['version']}", flavor, found["version"], members, set(found["others"]))


def problems(source: str, libraries: list[Names]) -> list[str]:
    """A line for each use of a name that a library lacks, or that the check can't follow."""
    tree = ast.parse(source)
    if not any(
        isinstance(node, ast.Name | ast.arg | ast.alias) and _own_name(node) == "trt" for node in ast.walk(tree)
    ):
        return _imports(tree)
    return [*_imports(tree), *_lookups(tree), *_misnamed(tree), *_absent(tree, libraries)]


def _own_name(node: ast.AST) -> str | None:
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.arg):
        return node.arg
    return node.asname if isinstance(node, ast.alias) else None


def _imports(tree: ast.Module) -> list[str]:
    """Imports of the library under another name, which the check could not see."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [
                f"line {node.lineno}: import {alias.name} under the name trt"
                for alias in node.names
                if alias.name.split(".")[0] in ("tensorrt", "tensorrt_rtx") and alias.asname != "trt"
            ]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in ("tensorrt", "tensorrt_rtx"):
            found.append(f"line {node.lineno}: import {node.module} as trt, not names from it")
    return found


def _lookups(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id in ("getattr", "hasattr", "setattr")
            and _class_of(node.args[0]) is not None
        ):
            yield f"line {node.lineno}: {node.func.id} on a TensorRT object hides the name; branch on the flavor"


def _misnamed(tree: ast.Module) -> Iterator[str]:
    """Objects under a name that VARIABLES doesn't have, which the check could not see."""
    for node in ast.walk(tree):
        targets: list[ast.expr] = []
        if isinstance(node, ast.Assign):
            targets, value = node.targets, node.value
        elif isinstance(node, ast.AnnAssign | ast.NamedExpr):
            targets, value = [node.target], node.value  # type: ignore[assignment]
        elif isinstance(node, ast.withitem) and node.optional_vars is not None:
            targets, value = [node.optional_vars], node.context_expr
        for target in targets:
            made = _made_by(value)
            if made is not None and _class_of(target) != made:
                wanted = [name for name, owner in VARIABLES.items() if owner == made]
                yield f"line {target.lineno}: {ast.unparse(target)} holds a {made}; name it {' or '.join(wanted)}"


def _made_by(value: ast.AST | None) -> str | None:
    """The class of what a call returns, where VARIABLES has a name for it."""
    if not isinstance(value, ast.Call) or not isinstance(value.func, ast.Attribute):
        return None
    if isinstance(value.func.value, ast.Name) and value.func.value.id == "trt":
        made = "ILogger" if value.func.attr == "Logger" else value.func.attr
        return made if made in VARIABLES.values() else None
    return MAKES.get(value.func.attr) if _class_of(value.func.value) in VARIABLES.values() else None


def _absent(tree: ast.Module, libraries: list[Names]) -> Iterator[str]:
    guarded = _guarded(tree)
    for node, owner, member in _uses(tree):
        absent = [library for library in libraries if not library.has(owner, member)]
        if not absent:
            continue
        name = owner if member is None else f"{owner}.{member}"
        flavor = next((ONLY_IN[key][0] for key in ((owner, member), (owner, None)) if key in ONLY_IN), None)
        if flavor is None or any(library.flavor == flavor for library in absent):
            yield f"line {node.lineno}: {name} is not in {', '.join(library.label for library in absent)}"
        elif id(node) not in guarded:
            yield f"line {node.lineno}: {name} is only in {flavor}; use it in an `if` on the flavor"
    known = {name for library in libraries for names in library.members.values() for name in names}
    everywhere = set.intersection(*({n for names in lib.members.values() for n in names} for lib in libraries))
    listed = {member for _, member in ONLY_IN}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and _class_of(node.value) is None:
            partial = node.attr in known - everywhere
            if partial and not (node.attr in listed and id(node) in guarded) and not node.attr.startswith("__"):
                yield f"line {node.lineno}: {node.attr} is a name of TensorRT's, but not in every version"
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "trt":
            name = node.attr
            if not name.startswith("__") and not name[0].isupper():
                absent = [library for library in libraries if name not in library.others]
                if absent:
                    yield f"line {node.lineno}: trt.{name} is not in {', '.join(lib.label for lib in absent)}"


def _uses(tree: ast.Module) -> Iterator[tuple[ast.Attribute, str, str | None]]:
    """Each (node, class, member or None) of an attribute of the library or of one of its objects."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Attribute) or node.attr.startswith("__"):
            continue
        if isinstance(node.value, ast.Name) and node.value.id == "trt":
            if node.attr[0].isupper():
                yield node, node.attr, None
        elif (owner := _class_of(node.value)) is not None and owner != "trt":
            yield node, owner, node.attr


def _class_of(node: ast.AST) -> str | None:
    """The TensorRT class that an expression stands for: `trt.X`, or a variable or attribute of a known name."""
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "trt":
        return node.attr
    if isinstance(node, ast.Name) and node.id == "trt":
        return "trt"
    if isinstance(node, ast.Name | ast.Attribute):
        name = node.id if isinstance(node, ast.Name) else node.attr
        return VARIABLES.get(name.lstrip("_"))
    if isinstance(node, ast.Call):
        return _made_by(node)
    return None


def _guarded(tree: ast.Module) -> set[int]:
    """Nodes in a branch on the flavor, or in a function for one flavor."""
    found: set[int] = set()
    for node in ast.walk(tree):
        branch = isinstance(node, ast.If | ast.IfExp) and any(
            _terminal(part) == "flavor" for part in ast.walk(node.test)
        )
        if branch or (isinstance(node, ast.FunctionDef) and node.name.endswith(("_rtx", "_tensorrt"))):
            found |= {id(part) for part in ast.walk(node)}
    return found


def _terminal(node: ast.AST) -> str | None:
    if isinstance(node, ast.Name):
        return node.id.lstrip("_")
    return node.attr.lstrip("_") if isinstance(node, ast.Attribute) else None
