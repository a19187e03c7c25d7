"""Every use of TensorRT in our code fits the recorded signatures of 10.16, 11.4 and TensorRT for RTX 1.7.

The check is proved by planted uses here, and by every call of our own made wrong in test_tensorrt_wrong_calls.py.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from benchmarks.tensorrt_api.calls import IGNORED, checked_calls
from benchmarks.tensorrt_api.conformance import problems
from benchmarks.tensorrt_api.inference import VARIABLES, Inference
from benchmarks.tensorrt_api.lists import load_all

LIBRARIES = load_all()
USERS = (
    "benchmarks/gpu/rtx.py",
    "export/trt/build.py",
    "export/trt/inspector.py",
    "export/trt/progress.py",
    "runtime/backends/trt/engine.py",
    "runtime/backends/trt/rtx.py",
    "runtime/backends/trt/slot.py",
)


def read(repository: Path, name: str) -> ast.Module:
    return ast.parse((repository / name).read_text(encoding="utf-8"))


def test_the_calls_of_the_backend_and_the_builder_are_seen(repository: Path) -> None:
    """A check that is blind to an object finds nothing wrong with it."""
    seen = {name: checked_calls(Inference(read(repository, name), LIBRARIES)) for name in USERS}
    assert seen["runtime/backends/trt/slot.py"] == [
        f"IExecutionContext.{method}"
        for method in (
            "execute_async_v3",
            "set_optimization_profile_async",
            "set_device_memory",
            "set_tensor_address",
            "set_input_shape",
            "infer_shapes",
            "get_tensor_shape",
            "update_device_memory_size_for_shapes",
        )
    ]
    assert seen["export/trt/inspector.py"] == [
        "trt.Runtime",
        "Runtime.deserialize_cuda_engine",
        "ICudaEngine.create_engine_inspector",
        "EngineInspector.get_engine_information",
    ]
    assert {
        "Builder.build_serialized_network",
        "OnnxParser.parse",
        "ParserError.desc",
        "ITimingCache.serialize",
    } <= set(seen["export/trt/build.py"])
    assert {"IRuntimeCache.serialize", "ICudaEngine.create_execution_context"} <= set(
        seen["runtime/backends/trt/rtx.py"]
    )
    assert {name: len(calls) for name, calls in seen.items()} == {
        "benchmarks/gpu/rtx.py": 18,
        "export/trt/build.py": 27,
        "export/trt/inspector.py": 4,
        "export/trt/progress.py": 2,
        "runtime/backends/trt/engine.py": 10,
        "runtime/backends/trt/rtx.py": 7,
        "runtime/backends/trt/slot.py": 8,
    }


CONTEXT, CONFIG = "def f(trt, context): ", "def f(trt, builder_config): "


@pytest.mark.parametrize(
    ("source", "message"),
    [
        # Arguments.
        (
            "def f(trt): builder = trt.Builder()",
            "trt.Builder: logger is missing in (logger) (rtx 1.7.1.116, tensorrt 10",
        ),
        ("def f(trt): builder = trt.Builder(5)", "trt.Builder: logger is int, expected ILogger"),
        ("def f(trt): engine = trt.ICudaEngine()", "trt.ICudaEngine can't be made by calling it"),
        (
            "def f(trt, network, logger): onnx_parser = trt.OnnxParser(logger, network)",
            "network is ILogger, expected INet",
        ),
        ("def f(trt, onnx_parser): return onnx_parser.parse()", "OnnxParser.parse: model is missing in (model, path)"),
        ("def f(trt, onnx_parser, p: str): return onnx_parser.parse(p)", "model is str, expected Buffer"),
        ("def f(trt, onnx_parser, m: bytes): return onnx_parser.parse(m, m)", "path is bytes, expected str"),
        (CONTEXT + "return context.execute_async_v3()", "execute_async_v3: stream_handle is missing"),
        (CONTEXT + "return context.execute_async_v3(1, 2)", "2 arguments for (stream_handle)"),
        (
            CONTEXT + "return context.execute_async_v3(stream=1)",
            "no parameter can be given as stream= in (stream_handle)",
        ),
        (CONTEXT + "return context.execute_async_v3(1, stream_handle=2)", "stream_handle is given twice"),
        (CONTEXT + "return context.set_input_shape((1, 2), 'images')", "name is tuple, expected str"),
        (
            CONTEXT + "return context.set_input_shape('images', 4)",
            "shape is int, expected tuple / shape is int, expected l",
        ),
        (CONTEXT + "return context.set_tensor_address(1, f'x')", "name is int, expected str"),
        (CONTEXT + "return context.set_tensor_address('x', None)", "memory is None, expected SupportsInt"),
        (CONTEXT + "return context.set_tensor_address(*pair)", "the check can't follow * and **"),
        (CONTEXT + "return context.set_tensor_address(**pair)", "the check can't follow * and **"),
        (CONTEXT + "context.set_device_memory(4096)", "size is missing in (memory, size)"),
        (CONFIG + "builder_config.set_flag('TF32')", "flag is str, expected BuilderFlag"),
        (
            CONFIG + "builder_config.set_flag(trt.MemoryPoolType.WORKSPACE)",
            "flag is MemoryPoolType, expected BuilderFlag",
        ),
        (
            CONFIG + "builder_config.set_memory_pool_limit(1 << 30, trt.MemoryPoolType.WORKSPACE)",
            "pool is int, expected",
        ),
        (
            "def f_rtx(trt, builder_config):\n"
            " return builder_config.set_compute_capability(0, trt.ComputeCapability.SM75)",
            "compute_capability is int, expected ComputeCapability (rtx 1.7.1.116)",
        ),
        (
            "def f_rtx(trt, builder_config, n: str):\n"
            " member = trt.ComputeCapability.__members__[n]\n return builder_config.set_compute_capability(0, member)",
            "compute_capability is int, expected ComputeCapability (rtx 1.7.1.116)",
        ),
        (
            "def f(trt, builder, network, builder_config):\n"
            " host_memory = builder.build_serialized_network(builder_config, network)",
            "network is IBuilderConfig, expected INetworkDefinition",
        ),
        ("def f(trt, builder, network): host_memory = builder.build_serialized_network(network)", "config is missing"),
        ("def f(trt, engine): return engine.get_tensor_profile_shape(0, 'x')", "name is int, expected str"),
        (
            "def f(trt, engine, i):\n name = engine.get_tensor_name(i)\n return engine.get_tensor_name(name)",
            "index is str, expected SupportsInt",
        ),
        (
            "def f(trt, engine): context = engine.create_execution_context(True)",
            "strategy is bool, expected ExecutionCo",
        ),
        (
            "def f(trt, inspector): return inspector.get_engine_information('json')",
            "format is str, expected LayerInform",
        ),
        (
            "def f(trt, optimization_profile): optimization_profile.set_shape('x', (1,), (2,))",
            "max is missing in (input, ",
        ),
        (
            "class A:\n def g(self) -> int: return 1\n def f(self, trt, context):\n"
            "  return context.set_tensor_address(self.g(), 'x')",
            "name is int, expected str",
        ),
        # Methods, properties and enumerations taken for one another.
        (CONTEXT + "return context.infer_shapes", "infer_shapes is a method, and isn't called"),
        ("def f(trt, onnx_parser, m: bytes):\n if onnx_parser.parse: return 1", "parse is a method, and isn't called"),
        ("def f(trt, engine): return engine.num_io_tensors()", "num_io_tensors is a property, and can't be called"),
        (
            "def f(trt): return trt.BuilderFlag.TF32()",
            "BuilderFlag.TF32 belongs to an enumeration, and can't be called",
        ),
        ("def f(trt, engine): return engine.get_tensor_dtype('x').name()", "DataType.name belongs to an enumeration"),
        ("def f(trt): return trt.ILogger.ERROR()", "ILogger.ERROR is a constant, and can't be called"),
        ("def f(trt): return trt.Runtime.engine_host_code_allowed", "is a property of an object, not of the class"),
        ("def f(trt): trt.ILogger.__init__()", "ILogger.__init__ is called on the class, without an object"),
        (CONFIG + "builder_config.set_flag(trt.BuilderFlag.STRICT)", "BuilderFlag.STRICT is not in rtx"),
        (CONFIG + "builder_config.set_flag(trt.BuilderFlags.TF32)", "BuilderFlags is not in rtx"),
        # Attributes that are assigned.
        ("def f(trt, engine): engine.num_io_tensors = 3", "ICudaEngine.num_io_tensors is read-only"),
        ("def f(trt, engine): engine.num_layers += 1", "ICudaEngine.num_layers is read-only"),
        (CONTEXT + "return context.device_memory", "IExecutionContext.device_memory is write-only"),
        (CONTEXT + "context.infer_shapes = 1", "infer_shapes is a method, and can't be assigned"),
        (CONTEXT + "context.stream = 1", "IExecutionContext.stream is not in rtx"),
        (CONFIG + "del builder_config.progress_monitor", "progress_monitor is a property, and can't be deleted"),
        (CONFIG + "builder_config.profiling_verbosity = 2", "is given a int, expected ProfilingVerbosity"),
        (CONFIG + "builder_config.builder_optimization_level = '3'", "is given a str, expected SupportsInt"),
        ("def f(trt, trt_runtime): trt_runtime.engine_host_code_allowed = 'yes'", "is given a str, expected bool"),
        ("def f(trt): trt.BuilderFlag.TF32 = 1", "belongs to an enumeration, and can't be called or assigned"),
        # Results.
        (CONTEXT + "context.execute_async_v3(1)", "execute_async_v3 returns bool, which is ignored"),
        (
            CONFIG + "builder_config.add_optimization_profile(x)",
            "add_optimization_profile returns int, which is ignored",
        ),
        (CONTEXT + "return context.set_device_memory(1, 2)", "set_device_memory returns None, which is used"),
        (CONFIG + "x = builder_config.clear_flag(trt.BuilderFlag.TF32)", "clear_flag returns None, which is used"),
        (CONFIG + "assert builder_config.add_optimization_profile(x)", "returns int, which is used as true or false"),
        (
            "def f(trt, engine):\n if not engine.get_tensor_mode('x'): return 1",
            "TensorIOMode, which is used as true or",
        ),
        ("def f(trt, engine):\n for i in engine.num_io_tensors: pass", "is a int, which can't be iterated over"),
        ("def f(trt, engine): return [i for i in engine.num_io_tensors]", "is a int, which can't be iterated over"),
        (
            "def f(trt, engine): return tuple(engine.get_tensor_dtype('x'))",
            "is a DataType, which can't be iterated over",
        ),
        (
            "def f(trt, engine): return len(engine.create_engine_inspector())",
            "is a EngineInspector, which can't be iter",
        ),
        ("def f(trt, engine): return engine.num_io_tensors[0]", "is a int, which has no items"),
        ("def f(trt, engine): return engine.get_tensor_name(0).shape", "is a str, which has no shape"),
        (
            "def f(trt, context):\n missing = context.infer_shapes()\n return missing.name",
            "missing is a list, which has no name",
        ),
        ("def f(trt, timing_cache): return bytes(timing_cache)", "is a ITimingCache, which has no bytes"),
        ("def f(trt, engine): return engine.get_tensor_dtype('x') == 'FLOAT'", "DataType and str"),
        (
            "def f(trt, engine): return engine.get_tensor_location('x') in (trt.TensorIOMode.INPUT,)",
            "TensorIOMode and Te",
        ),
        (
            "def f(trt): return 1 << trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED",
            "in arithmetic; make it an int()",
        ),
        # What TensorRT calls.
        (
            "def f(trt):\n class L(trt.ILogger):\n  def log(self, message): pass",
            "log is called with 2 arguments, this takes",
        ),
        (
            "def f(trt):\n class L(trt.ILogger):\n  def write(self, a, b): pass",
            "ILogger has no write that L could override",
        ),
        (
            "def f(trt):\n class L(trt.ILogger):\n  def __init__(self): self.x = 1",
            "L.__init__ doesn't call that of ILogger",
        ),
        (
            "def f(trt):\n class M(trt.IProgressMonitor):\n  def step_complete(self, name, step): print(name)",
            "IProgressMonitor.step_complete must return bool, this returns None",
        ),
    ],
)
def test_a_planted_use_is_found(source: str, message: str) -> None:
    found = problems(source, LIBRARIES)
    assert any(message in line for line in found), found


@pytest.mark.parametrize(
    "source",
    [
        "def f(trt, network, logger): onnx_parser = trt.OnnxParser(logger=logger, network=network)",
        "def f(trt, onnx_parser, m: bytes): return onnx_parser.parse(m), onnx_parser.parse(path='x', model=m)",
        "def f(trt, trt_runtime, host_memory): engine = trt_runtime.deserialize_cuda_engine(host_memory)",
        "def f(trt, engine, anything): context = engine.create_execution_context(anything)",
        "def f(trt, engine, runtime_config): context = engine.create_execution_context(runtime_config)",
        CONTEXT + "return context.set_input_shape('x', [1, 2]) and context.set_input_shape('x', shape=(1, 2))",
        "def f_rtx(trt, runtime_cache): runtime_cache.deserialize(b'')",
        CONFIG + "return builder_config.get_flag(trt.BuilderFlag.TF32) == True",
        "def f(trt, engine): return tuple(engine.get_tensor_shape('x')), len(engine.get_tensor_shape('x'))",
        "def f(trt):\n class L(trt.ILogger):\n  def log(self, severity, message, more=None): pass",
        "def f(trt, context, settings): return settings.timing_cache.exists()",
        "import logging\nlogger = logging.getLogger('x')\ndef f(trt): logger.info('x')",
    ],
)
def test_what_is_allowed_is_not_reported(source: str) -> None:
    assert problems(source, LIBRARIES) == []


def test_each_result_that_is_left_has_its_reason() -> None:
    for (owner, method), reason in IGNORED.items():
        assert len(reason) > 20
        found = [library.member(owner, method) for library in LIBRARIES if library.has(owner, method)]
        assert found
        assert all(member is not None and member.result == "bool" for member in found)


def test_a_member_is_the_same_kind_and_gives_the_same_in_every_library() -> None:
    """The check takes the first library that has a member for its result."""
    for owner in {*VARIABLES.values(), "IProgressMonitor", "Dims"}:
        for name in {name for library in LIBRARIES for name in library.classes.get(owner, {})}:
            members = [member for library in LIBRARIES if (member := library.member(owner, name)) is not None]
            assert len({(member.kind, member.result) for member in members}) == 1, (
                owner,
                name,
            )
