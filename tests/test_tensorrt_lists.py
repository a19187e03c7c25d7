"""The lists of TensorRT's interface are whole, and what reads or writes them says so where they aren't."""

from __future__ import annotations

import json
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.tensorrt_api.conformance import problems
from benchmarks.tensorrt_api.docstrings import DocstringError, entry_of, function_entry
from benchmarks.tensorrt_api.lists import LISTS, ListError, load, load_all
from benchmarks.tensorrt_api.read_names import interface_of, to_json
from benchmarks.tensorrt_api.signatures import SignatureError, mismatch, parse_signature


def test_each_list_names_its_wheel_and_has_every_signature() -> None:
    libraries = load_all()
    assert [library.wheel for library in libraries] == [
        "tensorrt-rtx-cu13-bindings 1.7.1.116",
        "tensorrt-cu12-bindings 10.16.1.11",
        "tensorrt-cu13-bindings 11.4.0.106",
    ]
    for library in libraries:
        parse, error = library.member("OnnxParser", "parse"), library.member("OnnxParser", "get_error")
        assert parse is not None
        assert [(p.name, p.type, p.has_default) for p in parse.overloads[0].parameters] == [
            ("model", "Buffer", False),
            ("path", "str", True),
        ]
        assert parse.result == "bool"
        assert error is not None
        assert error.result == "ParserError"  # pybind11 writes nvonnxparser::IParserError
        inherited = library.member("IConvolutionLayer", "get_output")
        assert inherited is not None
        assert inherited.result == "ITensor"
        size = library.member("IExecutionContext", "device_memory")
        assert size is not None
        assert (size.kind, size.gets, size.sets) == ("property", None, "SupportsInt")
        shape = library.member("IExecutionContext", "set_input_shape")
        assert shape is not None
        assert len(shape.overloads) == 3


def empty(found: dict[str, Any]) -> None:
    found.clear()


def without_classes(found: dict[str, Any]) -> None:
    found["classes"] = {}


def short(found: dict[str, Any]) -> None:
    found["classes"] = dict(list(found["classes"].items())[:50])


def without_members(found: dict[str, Any]) -> None:
    found["classes"] = {name: {} for name in found["classes"]}


def without_enums(found: dict[str, Any]) -> None:
    found["enums"] = {}


def without_a_base(found: dict[str, Any]) -> None:
    del found["classes"]["ILayer"]


def without_wheel(found: dict[str, Any]) -> None:
    del found["wheel"]


def entry(text: Any) -> Callable[[dict[str, Any]], None]:
    def change(found: dict[str, Any]) -> None:
        found["classes"]["IExecutionContext"]["infer_shapes"] = text

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (empty, "KeyError"),
        (without_classes, "0 classes, expected 120 or more"),
        (short, "50 classes, expected 120 or more"),
        (without_members, "0 signatures, expected 450 or more"),
        (without_enums, "0 enums, expected 60 or more"),
        (without_a_base, "base classes that aren't listed: ILayer"),
        (without_wheel, "KeyError: 'wheel'"),
        (entry(""), r"IExecutionContext.infer_shapes has an empty entry"),
        (entry([]), r"IExecutionContext.infer_shapes has no signature"),
        (entry("infer_shapes() -> list"), r"IExecutionContext.infer_shapes: .* isn't \(parameters\) -> result"),
        (entry("(name: str -> bool"), r"IExecutionContext.infer_shapes: "),
        (entry("(name: dict[str) -> bool"), "has an open bracket or quote"),
        (entry("(name str) -> bool"), "isn't a parameter"),
        (entry("(name: str, name: int) -> bool"), "two parameters of one name"),
        (entry("(name: nvinfer1::Dims) -> bool"), "isn't an expression"),
        (entry(7), "TypeError"),
    ],
)
def test_a_list_that_is_not_whole_is_an_error(
    tmp_path: Path, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    found = json.loads(LISTS[0].read_text(encoding="utf-8"))
    change(found)
    path = tmp_path / "rtx-1.json"
    path.write_text(json.dumps(found), encoding="utf-8")
    with pytest.raises(ListError, match=message):
        load(path)


def test_no_list_is_an_error_and_not_an_empty_finding(tmp_path: Path) -> None:
    path = tmp_path / "rtx-1.json"
    path.write_text("", encoding="utf-8")
    with pytest.raises(ListError, match="JSONDecodeError"):
        load(path)
    with pytest.raises(ListError, match="there is no list of rtx"):
        load_all([])
    with pytest.raises(ListError, match="there is no list of tensorrt"):
        load_all(LISTS[:1])
    with pytest.raises(ValueError, match="no list of TensorRT to check against"):
        problems("def f(trt): trt.nonsense()", [])


def bound(name: str, docstring: str | None) -> Any:
    def function(*_: Any) -> None:
        raise NotImplementedError

    function.__name__, function.__doc__ = name, docstring
    return function


@pytest.mark.parametrize(
    ("docstring", "expected"),
    [
        ("run(self: a_b.c.X) -> None\n\n  Runs.", "() -> None"),
        ("run(self: c.X, name: str, n: typing.SupportsInt = -1) -> bool", "(name: str, n: SupportsInt = -1) -> bool"),
        ("run(self: c.X, k: c.K = <K.A: 0>, w: c.W = None) -> list[c.Y]", "(k: K = K.A, w: W = None) -> list[Y]"),
        ("run(self: c.X, w: c.W = <c.W object at 0x7f>) -> int", "(w: W = ...) -> int"),
        ("run(self: c.X, a: int = 1, b: int) -> int", "(a: int = 1, b: int) -> int"),
        ("run(self: c.X, a: n::v_1::I) -> d::e<d::f::g>", "(a: 'n::v_1::I') -> 'd::e<d::f::g>'"),
        (
            "run(*args, **kwargs)\nOverloaded function.\n\n1. run(self: X) -> int\n\nIt runs.\n\n"
            "2. run(self: X, a: str = '') -> int",
            ["() -> int", "(a: str = '') -> int"],
        ),
    ],
)
def test_a_docstring_becomes_an_entry(docstring: str, expected: object) -> None:
    assert entry_of(type("X", (), {"run": bound("run", docstring)}), "run") == expected


@pytest.mark.parametrize(
    ("docstring", "message"),
    [
        (None, r"X.run: no signature in its docstring None"),
        ("", "X.run: no signature in its docstring ''"),
        ("It runs.", "X.run: no signature"),
        ("walk(self: X) -> None", "X.run: no signature"),
        ("run(self: X)", "X.run: .* names no result"),
        ("run(self: X -> None", "X.run: .*"),
        ("run(self: X, 3) -> None", "X.run: '3' .* isn't a parameter"),
        ("run() -> None", "X.run: .* has no self"),
        (
            "run(*args, **kwargs)\nOverloaded function.\n\n1. run(self: X) -> int",
            "1 signatures of an overloaded function",
        ),
        ("run(*args, **kwargs)", "X.run: "),
    ],
)
def test_a_docstring_that_cannot_be_read_is_an_error(docstring: str | None, message: str) -> None:
    module: Any = types.ModuleType("broken")
    module.X = type("X", (), {"run": bound("run", docstring), "__module__": "pytest"})
    module.Builder, module.__version__ = module.X, "1"
    with pytest.raises(DocstringError, match=message):
        interface_of(module)


def test_properties_constants_and_functions_become_entries() -> None:
    class X:
        ready = property(bound("", "(arg0: c.X) -> bool"))
        size = property(bound("", "(self: c.X) -> int"), bound("", "(self: c.X, arg0: typing.SupportsInt) -> bool"))
        memory = property(None, bound("", "(arg0: c.X, arg1: typing.SupportsInt) -> None"))
        nameless = property(bound("", "It says."))
        MOST = 8

    assert [entry_of(X, name) for name in ("ready", "size", "memory", "MOST")] == [
        "get bool",
        "get int, set SupportsInt",
        "set SupportsInt",
        "constant int",
    ]
    assert entry_of(X, "__init__") is None  # it is Python's: pybind11 shows that the class can't be made
    with pytest.raises(DocstringError, match=r"X.nameless: no signature"):
        entry_of(X, "nameless")
    assert function_entry("bound", bound) == "(name: 'str', docstring: 'str | None') -> 'Any'"


def test_a_list_is_written_as_it_is_read() -> None:
    for path in LISTS:
        assert to_json(json.loads(path.read_text(encoding="utf-8"))) == path.read_text(encoding="utf-8")


@pytest.mark.parametrize("text", ["", "()->int", "(a: ) -> int", "(a, b -> int", "(a,) -> int", "(a) -> 1 +"])
def test_a_text_that_is_no_signature(text: str) -> None:
    with pytest.raises(SignatureError):
        parse_signature(text)


def test_arguments_are_bound_as_pybind11_binds_them() -> None:
    signature = parse_signature("(name: str, arg1: int = 0, shape: Dims = None) -> bool")

    def reason(*positional: str, **keywords: str) -> str | None:
        return mismatch([signature], positional, keywords, lambda wanted, given: wanted == given)

    assert reason("str") is reason("str", "int") is reason(name="str", shape="Dims") is None
    assert reason() == "name is missing in (name, arg1, shape)"
    assert reason("int") == "name is int, expected str"
    assert reason("str", arg1="int") == "no parameter can be given as arg1= in (name, arg1, shape)"
    assert reason("str", name="str") == "name is given twice in (name, arg1, shape)"
    assert reason("str", "int", "Dims", "int") == "4 arguments for (name, arg1, shape)"


def test_what_fits_is_what_the_installed_library_takes() -> None:
    """Every kind of value for every kind of parameter. The check may refuse more, in the places that are listed."""
    pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX is not installed")
    tried = subprocess.run([sys.executable, "-m", "tests.support.rtx_values"], capture_output=True, text=True)
    assert tried.returncode == 0, tried.stderr
    found = json.loads(tried.stdout.splitlines()[-1])
    (library,) = (library for library in load_all() if library.version == found["version"])
    assert len(found["trials"]) > 300
    wrong, stricter = [], set()
    for owner, method, given, wanted, is_taken in found["trials"]:
        member = library.member(owner, method)
        assert member is not None
        reason = mismatch(member.overloads, given, {}, library.fits)
        if not is_taken and reason is None:
            wrong.append((owner, method, given))
        elif is_taken and reason:
            stricter.add((wanted, given[-1]))
    assert wrong == []
    assert stricter == {
        *(("bool", kind) for kind in ("int", "float", "None", "IOptimizationProfile")),
        *((kind, "ndarray") for kind in ("Dims", "Sequence")),
        ("Buffer", "int"),  # NumPy's
        ("IOptimizationProfile", "None"),
        *(("str", kind) for kind in ("bytes", "None")),
    }
