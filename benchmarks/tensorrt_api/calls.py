"""Checks how a module uses what the lists say that TensorRT has: calls, results, properties, overridden methods."""

from __future__ import annotations

import ast
import builtins
from collections.abc import Iterator

from .inference import Inference
from .lists import Library, Member
from .signatures import mismatch, root

# Methods whose result a caller may leave, and why.
IGNORED = {
    ("IRuntimeCache", "deserialize"): "False means kernels of another version or GPU, which are compiled again",
}
_PLAIN = {"bool", "bytes", "float", "int", "list", "str", "tuple"}
_COUNTED = ("len", "list", "sorted", "tuple")  # builtins that iterate over their first argument


def call_problems(seen: Inference) -> Iterator[str]:
    """A line for each use that a library doesn't allow."""
    for node in ast.walk(seen.tree):
        found: dict[str, list[str]] = {}
        for library in _libraries(seen, node):
            for problem in _problems(seen, node, library):
                found.setdefault(problem, []).append(library.label)
        for problem, labels in found.items():
            yield f"line {getattr(node, 'lineno', 0)}: {problem} ({', '.join(labels)})"


def checked_calls(seen: Inference) -> list[str]:
    """The calls that are checked against signatures, as "IExecutionContext.infer_shapes", in order of lines."""
    found = [
        (node.lineno, f"{owner}.{node.func.attr}")
        for node in ast.walk(seen.tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
        if (owner := seen.class_of(node.func.value)) is not None
        if owner == "trt" or ((member := seen.member(owner, node.func.attr)) is not None and member.overloads)
    ]
    return [name for _, name in sorted(found)]


def _libraries(seen: Inference, node: ast.AST) -> list[Library]:
    """The libraries that a node runs with: those of the flavor that the name of its function ends in, or all."""
    for scope in seen.scope_of(node):
        for flavor in ("rtx", "tensorrt"):
            if isinstance(scope, ast.FunctionDef) and scope.name.endswith(f"_{flavor}"):
                return [library for library in seen.libraries if library.flavor == flavor]
    return list(seen.libraries)


def _problems(seen: Inference, node: ast.AST, library: Library) -> Iterator[str]:
    match node:
        case ast.Attribute():
            yield from _attribute(seen, node, library)
        case ast.ClassDef():
            yield from _overrides(seen, node, library)
        case ast.Compare():
            yield from _comparison(seen, node, library)
        case ast.BinOp(left=left, right=right):
            for part in (left, right):
                if (kind := seen.type_of(part)) in library.enums:
                    yield f"{ast.unparse(part)} is a {kind} in arithmetic; make it an int()"
        case ast.For(iter=iterated) | ast.comprehension(iter=iterated):
            yield from _iterated(seen, iterated, library)
        case ast.Subscript(value=value):
            if _lacks(seen.type_of(value), ("__getitem__",), library):
                yield f"{ast.unparse(value)} is a {seen.type_of(value)}, which has no items"
        case ast.Call(func=ast.Name(id=name), args=[argument, *_]):
            if name in _COUNTED:
                yield from _iterated(seen, argument, library)
            elif name == "bytes" and not library.fits("Buffer", seen.type_of(argument)):
                yield f"{ast.unparse(argument)} is a {seen.type_of(argument)}, which has no bytes"


def _attribute(seen: Inference, node: ast.Attribute, library: Library) -> Iterator[str]:
    owner, name = seen.class_of(node.value), node.attr
    if owner is None:
        kind = root(seen.type_of(node.value))
        if kind in _PLAIN and not hasattr(getattr(builtins, kind), name):
            yield f"{ast.unparse(node.value)} is a {kind}, which has no {name}"
        return
    call = seen.parents[node]
    is_called = isinstance(call, ast.Call) and call.func is node
    label = f"{owner}.{name}"
    if owner == "trt" and library.has(name, None):
        if is_called and name in library.classes:
            made = library.member(name, "__init__")
            if made is None:
                yield f"{label} can't be made by calling it"
            else:
                assert isinstance(call, ast.Call)
                yield from _arguments(seen, call, call.args, made, label, library)
        return
    if owner in library.enums and library.has(owner, name):
        if is_called or not isinstance(node.ctx, ast.Load):
            yield f"{label} belongs to an enumeration, and can't be called or assigned"
        return
    member = library.member(owner, name)
    if member is None:
        return  # the check of names says so
    if member.overloads:
        yield from _method(seen, node, member, label, library)
    elif is_called and member.kind != "class":
        yield f"{label} is a {member.kind}, and can't be called"
    elif member.kind == "property":
        yield from _property(seen, node, member, label, library)
    elif not isinstance(node.ctx, ast.Load):
        yield f"{label} is a {member.kind}, and can't be assigned"


def _method(seen: Inference, node: ast.Attribute, member: Member, label: str, library: Library) -> Iterator[str]:
    call = seen.parents[node]
    if not isinstance(call, ast.Call) or call.func is not node:
        if not isinstance(node.ctx, ast.Load):
            yield f"{label} is a method, and can't be assigned"
        else:
            yield f"{label} is a method, and isn't called"
        return
    is_unbound = member.kind == "method" and seen.is_class(node.value)
    if is_unbound and not (call.args and library.fits(label.split(".")[0], seen.type_of(call.args[0]))):
        yield f"{label} is called on the class, without an object"
        return
    yield from _arguments(seen, call, call.args[is_unbound:], member, label, library)
    yield from _result(seen, call, member, label, library)


def _arguments(
    seen: Inference, call: ast.Call, positional: list[ast.expr], member: Member, label: str, library: Library
) -> Iterator[str]:
    if any(isinstance(value, ast.Starred) for value in call.args) or any(not item.arg for item in call.keywords):
        yield f"{label}: the check can't follow * and **; write the arguments out"
        return
    keywords = {item.arg: seen.type_of(item.value) for item in call.keywords if item.arg}
    problem = mismatch(member.overloads, [seen.type_of(value) for value in positional], keywords, library.fits)
    if problem:
        yield f"{label}: {problem}"


def _result(seen: Inference, call: ast.Call, member: Member, label: str, library: Library) -> Iterator[str]:
    result, user = member.result, seen.parents[call]
    is_left = isinstance(user, ast.Expr)
    if result == "None" and not is_left and not isinstance(user, ast.Lambda):
        yield f"{label} returns None, which is used"
    elif result not in ("", "None") and is_left and tuple(label.split(".")) not in IGNORED:
        yield f"{label} returns {result}, which is ignored"
    is_test = isinstance(user, ast.If | ast.While | ast.IfExp | ast.Assert) and user.test is call
    is_test = (
        is_test or isinstance(user, ast.BoolOp) or (isinstance(user, ast.UnaryOp) and isinstance(user.op, ast.Not))
    )
    if is_test and (root(result) in ("int", "float", "tuple") or result in library.enums):
        yield f"{label} returns {result}, which is used as true or false"


def _property(seen: Inference, node: ast.Attribute, member: Member, label: str, library: Library) -> Iterator[str]:
    user = seen.parents[node]
    if seen.is_class(node.value) and member.sets is not None:
        yield f"{label} is a property of an object, not of the class"
    elif isinstance(node.ctx, ast.Del):
        yield f"{label} is a property, and can't be deleted"
    elif isinstance(node.ctx, ast.Load):
        if member.gets is None:
            yield f"{label} is write-only"
    elif member.sets is None:
        yield f"{label} is read-only"
    else:
        given = seen.type_of(user.value) if isinstance(user, ast.Assign | ast.AnnAssign) else ""
        if not library.fits(member.sets, given):
            yield f"{label} is given a {given}, expected {member.sets}"


def _comparison(seen: Inference, node: ast.Compare, library: Library) -> Iterator[str]:
    """Members of an enumeration beside something that never equals them."""
    sides = [node.left, *node.comparators]
    for operator, left, right in zip(node.ops, sides, sides[1:], strict=False):
        if isinstance(operator, ast.In | ast.NotIn):
            others = right.elts if isinstance(right, ast.Tuple | ast.List | ast.Set) else []
        else:
            others = [right]
        for other in others:
            kinds = {seen.type_of(left), seen.type_of(other)} - {"", "None"}
            if len(kinds) == 2 and kinds & library.enums.keys():
                yield f"{ast.unparse(left)} is compared with {ast.unparse(other)}: {' and '.join(sorted(kinds))}"


def _iterated(seen: Inference, iterated: ast.expr, library: Library) -> Iterator[str]:
    kind = seen.type_of(iterated)
    if _lacks(kind, ("__iter__", "__getitem__"), library):
        yield f"{ast.unparse(iterated)} is a {kind}, which can't be iterated over"


def _lacks(kind: str, methods: tuple[str, ...], library: Library) -> bool:
    """Whether a type is known and has none of these methods."""
    if kind in library.classes:
        return not any(library.member(kind, method) for method in methods)
    if root(kind) in _PLAIN:
        return not any(hasattr(getattr(builtins, root(kind)), method) for method in methods)
    return kind in library.enums or kind == "None"


def _overrides(seen: Inference, node: ast.ClassDef, library: Library) -> Iterator[str]:
    """Methods that TensorRT calls: their number of parameters, their result, and the call of the base's `__init__`."""
    for base in node.bases:
        if not seen.is_class(base):
            continue
        owner = seen.class_of(base) or ""
        for function in node.body:
            if not isinstance(function, ast.FunctionDef):
                continue
            member = library.member(owner, function.name)
            if function.name == "__init__":
                texts = {ast.unparse(part.func) for part in ast.walk(function) if isinstance(part, ast.Call)}
                if not texts & {f"{ast.unparse(base)}.__init__", "super().__init__"}:
                    yield f"{node.name}.__init__ doesn't call that of {owner}"
            elif member is None and not function.name.startswith("_"):
                yield f"{owner} has no {function.name} that {node.name} could override"
            elif member is not None and member.overloads:
                yield from _override(function, member, f"{owner}.{function.name}")


def _override(function: ast.FunctionDef, member: Member, label: str) -> Iterator[str]:
    arguments = function.args
    names = [argument.arg for argument in (*arguments.posonlyargs, *arguments.args)][1:]
    least = len(names) - len(arguments.defaults)
    counts = {len(signature.parameters) for signature in member.overloads}
    if arguments.vararg is None and not any(least <= count <= len(names) for count in counts):
        yield f"{label} is called with {' or '.join(map(str, sorted(counts)))} arguments, this takes {len(names)}"
    returns = [part for part in ast.walk(function) if isinstance(part, ast.Return) and part.value is not None]
    raises = isinstance(function.body[-1], ast.Raise)
    if member.result not in ("", "None") and not returns and not raises:
        yield f"{label} must return {member.result}, this returns None"
