"""Finds uses of TensorRT in a module's source that some version of TensorRT doesn't allow, without running it.

Here are the names; calls.py checks how they are used. The check relies on these rules, and enforces them in every
module that uses the name `trt`:
- the library is named `trt` (`import tensorrt as trt`, or a parameter);
- a variable, parameter or attribute that holds one of its objects has the name that VARIABLES gives to its class;
- nothing is looked up with getattr, hasattr or setattr.
A name that only one flavor has is listed in ONLY_IN with its reason, and is used only inside an `if` on `flavor` or in
a function whose name ends in `_rtx` or `_tensorrt`.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence

from .calls import call_problems
from .inference import VARIABLES, Inference
from .lists import Library

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


def problems(source: str, libraries: Sequence[Library], is_trt: bool = False) -> list[str]:
    """A line for each use that a library doesn't allow, or that the check can't follow.

    A module that doesn't use the name `trt` is only checked for imports, unless `is_trt`: then its variables of the
    names in VARIABLES hold TensorRT's objects too. Raises ValueError without libraries, which would allow everything.
    """
    if not libraries:
        raise ValueError("no list of TensorRT to check against")
    tree = ast.parse(source)
    seen = Inference(tree, libraries)
    if not _is_named(tree) and not (is_trt and _uses_objects(seen)):
        return _imports(tree)
    return [*_imports(tree), *_lookups(seen), *_misnamed(seen), *_absent(seen), *call_problems(seen)]


def _is_named(tree: ast.Module) -> bool:
    """Whether a module uses the name `trt`."""
    nodes = (node for node in ast.walk(tree) if isinstance(node, ast.Name | ast.arg | ast.alias))
    return any(_own_name(node) == "trt" for node in nodes)


def _uses_objects(seen: Inference) -> bool:
    """Whether a module uses a member of one of TensorRT's objects."""
    return any(isinstance(node, ast.Attribute) and seen.class_of(node.value) for node in ast.walk(seen.tree))


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


def _lookups(seen: Inference) -> Iterator[str]:
    for node in ast.walk(seen.tree):
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id in ("getattr", "hasattr", "setattr")
            and seen.class_of(node.args[0]) is not None
        ):
            yield f"line {node.lineno}: {node.func.id} on a TensorRT object hides the name; branch on the flavor"


def _misnamed(seen: Inference) -> Iterator[str]:
    """Objects under a name that VARIABLES doesn't have, which the check could not see elsewhere."""
    for node in ast.walk(seen.tree):
        targets: list[ast.expr] = []
        if isinstance(node, ast.Assign):
            targets, value = node.targets, node.value
        elif isinstance(node, ast.AnnAssign | ast.NamedExpr):
            targets, value = [node.target], node.value  # type: ignore[assignment]
        elif isinstance(node, ast.withitem) and node.optional_vars is not None:
            targets, value = [node.optional_vars], node.context_expr
        for target in targets:
            made = seen.type_of(value) if isinstance(target, ast.Name | ast.Attribute) else ""
            if made in VARIABLES.values() and VARIABLES.get(terminal(target) or "") != made:
                wanted = [name for name, owner in VARIABLES.items() if owner == made]
                yield f"line {target.lineno}: {ast.unparse(target)} holds a {made}; name it {' or '.join(wanted)}"
    for node in ast.walk(seen.tree):
        function = seen.local_function(node.func) if isinstance(node, ast.Call) else None
        if isinstance(node, ast.Call) and function is not None:
            parameters = [argument.arg for argument in (*function.args.posonlyargs, *function.args.args)]
            given = list(zip(parameters[isinstance(node.func, ast.Attribute) :], node.args, strict=False))
            for name, value in [*given, *((item.arg, item.value) for item in node.keywords if item.arg)]:
                made = seen.type_of(value)
                if made in VARIABLES.values() and VARIABLES.get(name.lstrip("_")) != made:
                    yield f"line {node.lineno}: {name} of {function.name} is given a {made}; name it so"


def _absent(seen: Inference) -> Iterator[str]:
    tree, libraries = seen.tree, seen.libraries
    guarded = _guarded(tree)
    for node, owner, member in _uses(seen):
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
    for part in ast.walk(tree):
        if isinstance(part, ast.Attribute) and seen.class_of(part.value) is None:
            partial = part.attr in known - everywhere
            if partial and not (part.attr in listed and id(part) in guarded) and not part.attr.startswith("__"):
                yield f"line {part.lineno}: {part.attr} is a name of TensorRT's, but not in every version"
    for part in ast.walk(tree):
        if isinstance(part, ast.Attribute) and isinstance(part.value, ast.Name) and part.value.id == "trt":
            name = part.attr
            if not name.startswith("__") and not name[0].isupper():
                absent = [library for library in libraries if name not in library.others]
                if absent:
                    yield f"line {part.lineno}: trt.{name} is not in {', '.join(lib.label for lib in absent)}"


def _uses(seen: Inference) -> Iterator[tuple[ast.Attribute, str, str | None]]:
    """Each (node, class, member or None) of an attribute of the library or of one of its objects."""
    for node in ast.walk(seen.tree):
        if not isinstance(node, ast.Attribute) or node.attr.startswith("__"):
            continue
        owner = seen.class_of(node.value)
        if owner == "trt":
            if node.attr[0].isupper():
                yield node, node.attr, None
        elif owner is not None:
            yield node, owner, node.attr


def _guarded(tree: ast.Module) -> set[int]:
    """Nodes in a branch on the flavor, or in a function for one flavor."""
    found: set[int] = set()
    for node in ast.walk(tree):
        branch = isinstance(node, ast.If | ast.IfExp) and any(
            terminal(part) == "flavor" for part in ast.walk(node.test)
        )
        if branch or (isinstance(node, ast.FunctionDef) and node.name.endswith(("_rtx", "_tensorrt"))):
            found |= {id(part) for part in ast.walk(node)}
    return found


def terminal(node: ast.AST) -> str | None:
    """The last name of a variable or attribute, without leading underscores."""
    if isinstance(node, ast.Name):
        return node.id.lstrip("_")
    return node.attr.lstrip("_") if isinstance(node, ast.Attribute) else None
