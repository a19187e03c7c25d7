"""The stand-in's TensorRT has the signatures that the real bindings' docstrings record, and refuses other calls."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pytest

pytest.importorskip("cuda.bindings.runtime", reason="the stand-in takes its enumerations from cuda-python")

from benchmarks.tensorrt_api.lists import Library, Member
from benchmarks.tensorrt_api.signatures import root

from ..support.standin.driver import Driver
from ..support.standin.trt import MODELLED, NAMES, library_of, make_tensorrt, type_name
from ..support.standin.trt_engine import engine_bytes
from ..support.standin.trt_on_gpu import GpuContext

MODELS = [*MODELLED.items(), ("IExecutionContext", GpuContext)]
# What the stand-in returns for an object of TensorRT's.
PLAIN = {"Dims": "tuple", "IHostMemory": "bytes"}


def differences(owner: str, model: type, library: Library) -> list[str]:
    """How the methods and properties of a model differ from the recorded ones."""
    found = []
    for name, own in vars(model).items():
        member = library.member(owner, name)
        if member is None:
            if not name.startswith("_") and name not in {
                n for names in NAMES for n in library_of(names).classes[owner]
            }:
                found.append(f"{name} is in no version")
        elif isinstance(own, property):
            if member.kind != "property" or (own.fset is None) != (member.sets is None):
                found.append(f"{name} is a property, recorded is {member}")
        elif callable(own):
            found += [f"{name}: {text}" for text in method_differences(own, member)]
    return found


def method_differences(own: Any, member: Member) -> list[str]:
    if not member.overloads:
        return [f"a method, recorded is a {member.kind}"]
    parameters = list(inspect.signature(own).parameters)[1:]
    one = [[parameter.name for parameter in signature.parameters] for signature in member.overloads]
    merged = list(dict.fromkeys(name for names in one for name in names))
    found = [] if parameters in (*one, merged) else [f"{parameters}, recorded are {one}"]
    result = own.__annotations__["return"]
    if result != "Any" and root(str(result)) != root(PLAIN.get(member.result, member.result)):
        found.append(f"returns {result}, recorded is {member.result}")
    return found


@pytest.mark.parametrize("names", NAMES)
@pytest.mark.parametrize(("owner", "model"), MODELS, ids=[model.__name__ for _, model in MODELS])
def test_parameters_are_the_recorded_ones_in_their_order(owner: str, model: type, names: str) -> None:
    if owner in library_of(names).classes:
        assert differences(owner, model, library_of(names)) == []


def test_a_model_that_differs_is_found() -> None:
    class Context:
        def set_input_shape(self, shape: object, name: str) -> bool:
            raise NotImplementedError

        def execute_async_v3(self, stream: int) -> bool:
            raise NotImplementedError

        def infer_shapes(self) -> None:
            raise NotImplementedError

        def profiler(self) -> None:
            raise NotImplementedError

        def enqueue(self) -> None:
            raise NotImplementedError

        @property
        def name(self) -> str:
            raise NotImplementedError

    for names in NAMES:
        found = differences("IExecutionContext", Context, library_of(names))
        assert [line.split(":")[0].split()[0] for line in found] == [
            "set_input_shape",
            "execute_async_v3",
            "infer_shapes",
            "profiler",
            "enqueue",
            "name",
        ]


@pytest.fixture(params=NAMES)
def trt(request: pytest.FixtureRequest) -> Any:
    module, _ = make_tensorrt(Driver(), request.param)
    return module


def open_engine(trt: Any) -> Any:
    class Logger(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            raise AssertionError(message)

    return trt.Runtime(Logger()).deserialize_cuda_engine(engine_bytes([[(1, 32, 32), (1, 64, 64), (2, 64, 64)]]))


def test_a_call_that_the_real_bindings_refuse_is_refused(trt: Any) -> None:
    engine = open_engine(trt)
    strategy = trt.ExecutionContextAllocationStrategy.USER_MANAGED
    context = engine.create_execution_context(strategy=strategy)
    for call in (
        lambda: trt.Runtime(),
        lambda: trt.Runtime("logger"),
        lambda: trt.Runtime(log=None),
        lambda: engine.get_tensor_name("images"),
        lambda: engine.get_tensor_profile_shape(0, "images"),
        lambda: engine.create_execution_context(True),
        lambda: engine.create_execution_context(trt.BuilderFlag.TF32),
        lambda: engine.create_execution_context(how=strategy),
        lambda: engine.create_engine_inspector().get_engine_information("json"),
        lambda: context.set_input_shape((1, 64, 64, 3), "images"),
        lambda: context.set_input_shape("images", 3),
        lambda: context.set_device_memory(4096),
        lambda: context.set_tensor_address("images"),
        lambda: context.set_tensor_address("images", None),
        lambda: context.execute_async_v3(),
        lambda: context.execute_async_v3(stream=0),
        lambda: context.execute_async_v3(0, 0),
        lambda: context.set_optimization_profile_async(0.5, 0),
    ):
        with pytest.raises(TypeError, match="incompatible function arguments"):
            call()
    assert context.set_input_shape(shape=[1, 64, 64, 3], name="images")
    assert context.set_input_shape("image_sizes", (np.int64(1), 2))


def test_what_the_real_bindings_cannot_make_is_not_made(trt: Any) -> None:
    with pytest.raises(NotImplementedError, match=r"doesn't do Builder.__init__"):
        trt.Builder(None)


def test_a_value_has_the_type_that_the_lists_write(trt: Any) -> None:
    own = type("Logger", (trt.ILogger,), {})()
    values = [True, 1, np.int32(1), 1.5, "x", b"x", (1,), [1], None, np.zeros(1), own, trt.BuilderFlag.TF32, object()]
    assert [type_name(value) for value in values] == [
        *("bool", "int", "int", "float", "str", "bytes", "tuple", "list", "None", "ndarray"),
        *("ILogger", "BuilderFlag", "object"),
    ]
