"""Each call of TensorRT in our code, made wrong in several ways: the check of signatures must report every one."""

from __future__ import annotations

import ast
import copy
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.tensorrt_api.calls import IGNORED, call_problems, checked_calls
from benchmarks.tensorrt_api.conformance import problems
from benchmarks.tensorrt_api.inference import Inference
from benchmarks.tensorrt_api.lists import Member, load_all

from .test_tensorrt_signatures import USERS

LIBRARIES = load_all()
# Written in Python without annotations: nothing says which types it takes.
UNTYPED = "trt.nptype"


def broken(tree: ast.AST) -> list[str]:
    return list(call_problems(Inference(ast.parse(ast.unparse(ast.fix_missing_locations(tree))), LIBRARIES)))


def calls_of(seen: Inference) -> Iterator[tuple[ast.Call, Member | None, str]]:
    """Each checked call, what is called (None: a class, its `__init__` if it has one), and its name."""
    for node in ast.walk(seen.tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            owner = seen.class_of(node.func.value)
            if owner is not None:
                member = seen.member(owner, node.func.attr)
                if owner == "trt" or (member is not None and member.overloads):
                    yield node, member, f"{owner}.{node.func.attr}"


def mutants(call: ast.Call, member: Member | None, name: str) -> Iterator[tuple[str, ast.AST]]:
    """Wrong forms of a call, named."""
    more = copy.deepcopy(call)
    more.args += [ast.Constant(0)] * 9
    yield "more arguments", more
    keyword = copy.deepcopy(call)
    keyword.keywords.append(ast.keyword("no_such_parameter", ast.Constant(0)))
    yield "an unknown keyword", keyword
    if member is not None:  # a class may be used without being called
        yield "no call", copy.deepcopy(call.func)
    for index in range(len(call.args) if name != UNTYPED else 0):
        changed = copy.deepcopy(call)
        changed.args[index] = ast.Constant(1j)  # which nothing takes
        yield f"argument {index + 1} of another type", changed
    overloads = member.overloads if member is not None else ()
    required = [sum(not parameter.has_default for parameter in signature.parameters) for signature in overloads]
    if call.args and required and len(call.args) <= min(required):
        fewer = copy.deepcopy(call)
        del fewer.args[-1]
        yield "an argument less", fewer


@pytest.mark.parametrize("name", USERS)
def test_wrong_arguments_are_reported(name: str, repository: Path) -> None:
    tree = ast.parse((repository / name).read_text(encoding="utf-8"))
    seen = Inference(tree, LIBRARIES)
    calls = list(calls_of(seen))
    assert len(calls) == len(checked_calls(seen))
    kinds, missed = set(), []
    for call, member, label in calls:
        for kind, mutant in mutants(call, member, label):
            kinds.add(kind)
            if not broken(Replace(call, mutant).visit(copy.deepcopy(tree))):
                missed.append(f"line {call.lineno}: {ast.unparse(call)}: {kind}")
    assert missed == []
    assert kinds >= {"more arguments", "an unknown keyword", "argument 1 of another type", "no call"}


@pytest.mark.parametrize("name", USERS)
def test_a_wrong_name_is_reported(name: str, repository: Path) -> None:
    tree = ast.parse((repository / name).read_text(encoding="utf-8"))
    for call, _, label in calls_of(Inference(tree, LIBRARIES)):
        renamed = copy.deepcopy(call)
        assert isinstance(renamed.func, ast.Attribute)
        if label.endswith("__init__"):
            continue  # every class has Python's own special methods
        renamed.func.attr += "_v9"
        source = ast.unparse(ast.fix_missing_locations(Replace(call, renamed).visit(copy.deepcopy(tree))))
        assert any("_v9" in line for line in problems(source, LIBRARIES, is_trt=True)), ast.unparse(call)


@pytest.mark.parametrize("name", USERS)
def test_results_that_are_ignored_or_not_there_are_reported(name: str, repository: Path) -> None:
    tree = ast.parse((repository / name).read_text(encoding="utf-8"))
    seen = Inference(tree, LIBRARIES)
    for call, member, label in calls_of(seen):
        if member is None or not member.result or tuple(label.split(".")) in IGNORED:
            continue
        function = next(scope for scope in seen.scope_of(call) if isinstance(scope, ast.FunctionDef))
        value = copy.deepcopy(call)
        wrong = ast.Expr(value) if member.result != "None" else ast.Assign([ast.Name("x", ast.Store())], value)
        function.body.append(wrong)
        try:
            expected = "which is used" if member.result == "None" else "which is ignored"
            assert any(label in line and expected in line for line in broken(tree)), ast.unparse(call)
        finally:
            function.body.remove(wrong)


class Replace(ast.NodeTransformer):
    """Replaces one call in a copy of its tree."""

    def __init__(self, call: ast.Call, mutant: ast.AST) -> None:
        self.place, self.text, self.mutant = (call.lineno, call.col_offset), ast.unparse(call), mutant

    def visit_Call(self, node: ast.Call) -> ast.AST:
        if (node.lineno, node.col_offset) == self.place and ast.unparse(node) == self.text:
            return self.mutant
        return self.generic_visit(node)
