"""The type of an expression in a module's source, as far as it can be told without running it.

TensorRT's objects are known by the name of their variable or attribute (VARIABLES), by the call that made them, and by
the recorded results of methods; other values by their literal, their annotation or their only assignment.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence

from .lists import Library, Member
from .signatures import root

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
_BUILTINS = {
    "bool": "bool",
    "bytes": "bytes",
    "float": "float",
    "int": "int",
    "len": "int",
    "list": "list",
    "repr": "str",
    "sorted": "list",
    "str": "str",
    "tuple": "tuple",
}
_OURS = {"built", "settings"}  # variables that hold the toolkit's objects: `settings.timing_cache` is a path
_ANNOTATIONS = {"bool", "bytes", "float", "int", "str", "tuple", "list"}
CLASS_ITSELF = "type[{}]"  # of `trt.Builder`
Function = ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda


class Inference:
    """Types of the expressions of one module; "" where a type can't be told."""

    def __init__(self, tree: ast.Module, libraries: Sequence[Library]) -> None:
        self.tree, self.libraries = tree, libraries
        self.parents = {child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}
        self._scopes: dict[ast.AST, dict[str, list[ast.expr | str]]] = {}
        self._asked: set[int] = set()  # expressions whose type is being found: a loop assigns to what it reads
        self.functions: dict[str, list[ast.FunctionDef]] = {}  # of the module, methods included, by name
        for node in ast.walk(tree):
            self._bind(node)
            if isinstance(node, ast.FunctionDef):
                self.functions.setdefault(node.name, []).append(node)

    def scope_of(self, node: ast.AST) -> Iterator[ast.AST]:
        """The functions around a node, the innermost first, then the module."""
        while node is not self.tree:
            node = self.parents[node]
            if isinstance(node, Function | ast.Module):
                yield node

    def member(self, owner: str, name: str) -> Member | None:
        """A member of a class by the first library that has it; its kind is the same in all (a test sees to it)."""
        found = (library.member(owner, name) for library in self.libraries)
        return next((member for member in found if member is not None), None)

    def class_of(self, node: ast.expr) -> str | None:
        """The TensorRT class that an expression is, or is an object of; "trt" for the module, None for all else."""
        kind = self.type_of(node)
        owner = root(kind[5:-1] if kind.startswith("type[") else kind)
        return owner if owner == "trt" or any(library.has(owner, None) for library in self.libraries) else None

    def is_class(self, node: ast.expr) -> bool:
        """Whether an expression is a class of TensorRT's, not an object."""
        return self.type_of(node).startswith("type[")

    def local_function(self, called: ast.expr) -> ast.FunctionDef | None:
        """The function of this module that `name(…)` or `self.name(…)` calls; None where there is none, or several."""
        name = called.id if isinstance(called, ast.Name) else None
        if isinstance(called, ast.Attribute) and isinstance(called.value, ast.Name) and called.value.id == "self":
            name = called.attr
        found = self.functions.get(name or "", [])
        return found[0] if len(found) == 1 else None

    def type_of(self, node: ast.AST | None) -> str:
        """The type of an expression."""
        if node is None or id(node) in self._asked:
            return ""
        self._asked.add(id(node))
        try:
            return self._type_of(node)
        finally:
            self._asked.remove(id(node))

    def _type_of(self, node: ast.AST) -> str:
        match node:
            case ast.Constant(value=value):
                return type(value).__name__ if value is not None else "None"
            case ast.JoinedStr():
                return "str"
            case ast.Tuple():
                return "tuple"
            case ast.List() | ast.ListComp():
                return "list"
            case ast.UnaryOp(op=ast.Not()):
                return "bool"
            case ast.BinOp(left=left, right=right):
                kinds = {self.type_of(left), self.type_of(right)}
                return "int" if kinds == {"int"} and not isinstance(node.op, ast.Div) else ""
            case ast.IfExp(body=body, orelse=orelse):
                kinds = {self.type_of(body), self.type_of(orelse)}
                return kinds.pop() if len(kinds) == 1 else ""
            case ast.NamedExpr(value=value):
                return self.type_of(value)
            case ast.Subscript(value=ast.Attribute(attr="__members__") as members):
                kind = self.type_of(members.value)
                return kind[5:-1] if kind.startswith("type[") else ""
            case ast.Call(func=function):
                return self._result(function)
            case ast.Attribute(value=value, attr=name):
                return self._attribute(value, name)
            case ast.Name(id=name):
                return self._variable(node, name)
            case _:
                return ""

    def _result(self, function: ast.expr) -> str:
        if isinstance(function, ast.Name) and function.id in _BUILTINS and not self._bindings(function, function.id):
            return _BUILTINS[function.id]
        kind = self.type_of(function)
        if kind.startswith("type["):
            return "ILogger" if kind == "type[Logger]" else kind[5:-1]
        local = self.local_function(function)
        if local is not None:
            return _annotated(local.returns)
        if not isinstance(function, ast.Attribute):
            return ""
        member = self.member(self.class_of(function.value) or "", function.attr)
        return member.result if member is not None and member.overloads else ""

    def _attribute(self, value: ast.expr, name: str) -> str:
        owner = self.class_of(value)
        if owner is None and isinstance(value, ast.Name) and value.id in _OURS:
            return ""
        if owner is None:
            return "trt" if name.lstrip("_") == "trt" else VARIABLES.get(name.lstrip("_"), "")
        if owner == "trt" and any(library.has(name, None) for library in self.libraries):
            return CLASS_ITSELF.format(name)
        if any(owner in library.enums and library.has(owner, name) for library in self.libraries):
            return owner if self.is_class(value) else {"name": "str", "value": "int"}.get(name, "")
        member = self.member(owner, name)
        if member is None or member.overloads:
            return ""
        return member.result

    def _variable(self, node: ast.Name, name: str) -> str:
        bindings = self._bindings(node, name)
        if any(
            isinstance(binding, ast.Call) and ast.unparse(binding.func) == "logging.getLogger" for binding in bindings
        ):
            return ""
        if name == "trt":
            return "trt"
        if name.lstrip("_") in VARIABLES:
            return VARIABLES[name.lstrip("_")]
        kinds = {binding if isinstance(binding, str) else self.type_of(binding) for binding in bindings}
        return kinds.pop() if len(kinds) == 1 else ""

    def _bindings(self, node: ast.AST, name: str) -> list[ast.expr | str]:
        """What the nearest scope that binds a name binds it to: values, or a type from an annotation."""
        for scope in self.scope_of(node):
            if name in self._scopes.get(scope, {}):
                return self._scopes[scope][name]
        return []

    def _bind(self, node: ast.AST) -> None:
        """Note the names that a node binds in the scope around it."""
        match node:
            case ast.Assign(targets=targets, value=value):
                for target in targets:
                    self._note(node, target, value)
            case ast.AnnAssign(target=target, annotation=annotation):
                self._note(node, target, _annotated(annotation))
            case ast.NamedExpr(target=target, value=value):
                self._note(node, target, value)
            case ast.AugAssign(target=target) | ast.For(target=target) | ast.comprehension(target=target):
                self._note(node, target, "")
            case ast.withitem(optional_vars=ast.expr() as target):
                self._note(node, target, "")
            case ast.arg(arg=name, annotation=annotation):
                function = self.parents[self.parents[node]]
                holder = self.parents[node]
                is_packed = isinstance(holder, ast.arguments) and node in (holder.vararg, holder.kwarg)
                kind = "" if is_packed else _annotated(annotation)
                self._scopes.setdefault(function, {}).setdefault(name, []).append(kind)

    def _note(self, node: ast.AST, target: ast.expr, value: ast.expr | str) -> None:
        if isinstance(target, ast.Name):
            scope = next(self.scope_of(node), self.tree)
            self._scopes.setdefault(scope, {}).setdefault(target.id, []).append(value)
        elif isinstance(target, ast.Tuple | ast.List | ast.Starred):
            for part in target.elts if not isinstance(target, ast.Starred) else [target.value]:
                self._note(node, part, "")


def _annotated(annotation: ast.expr | None) -> str:
    """The type of an annotation that names one plain type, or that type of something."""
    if annotation is None:
        return ""
    kind = root(ast.unparse(annotation))
    return kind if kind in _ANNOTATIONS and "|" not in ast.unparse(annotation) else ""
