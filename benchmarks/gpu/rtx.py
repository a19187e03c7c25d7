"""TensorRT for RTX on this card: a small graph is built for the card and run, and what the library answers is kept.

NVIDIA names compute capabilities 7.5, 8.0, 8.6, 8.9 and 12.x; on another card the answer is the result.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from .step import Record, begin

TABLE = "TensorRT for RTX"


def main(arguments: Sequence[str] | None = None) -> None:
    """The step: import, build, load, run."""
    record = begin(__doc__, arguments)
    record.forget(TABLE)
    try:
        trt: Any = importlib.import_module("tensorrt_rtx")
    except ImportError as error:
        record.skip(TABLE, f"tensorrt_rtx cannot be imported: {error}")
        return
    record.row(TABLE, stage="import", answer=f"version {trt.__version__}")
    with record.part(TABLE):
        _try_rtx(record, trt)
    record.save()


def _try_rtx(record: Record, trt: Any) -> None:
    said: list[str] = []

    class Log(trt.ILogger):
        """Keeps what the library says, warnings and worse."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity <= trt.ILogger.WARNING:
                said.append(f"{severity.name}: {message}")

    def answer(stage: str, worked: bool, more: str = "") -> bool:
        words = ["works" if worked else "refused", *([more] if more else []), *said]
        record.row(TABLE, stage=stage, answer=". ".join(words))
        said.clear()
        return worked

    logger = Log()
    builder = trt.Builder(logger)
    network = builder.create_network(0)
    trt_tensor = network.add_input("data", trt.float32, (1, 3, 8, 8))
    weights = np.full((4, 3, 3, 3), 0.5, np.float32)
    convolution = network.add_convolution_nd(trt_tensor, 4, (3, 3), trt.Weights(weights), trt.Weights())
    convolution.get_output(0).name = "sums"
    network.mark_output(convolution.get_output(0))
    builder_config = builder.create_builder_config()
    member = _capability_rtx(trt)
    if member is not None:
        builder_config.num_compute_capabilities = 1
        if not answer("name the card", builder_config.set_compute_capability(member, 0), str(member)):
            return
    host_memory = builder.build_serialized_network(network, builder_config)
    target = "the default targets" if member is None else str(member)
    if not answer("build", host_memory is not None, f"for {target}"):
        return
    trt_runtime = trt.Runtime(logger)
    engine = trt_runtime.deserialize_cuda_engine(host_memory)
    if not answer("load", engine is not None):
        return
    context = engine.create_execution_context()
    if answer("create a context", context is not None):
        answer("run", *_run(context))


def _capability_rtx(trt: Any) -> Any:
    """The member for the card that is here; None without a card or where the library has no such member."""
    import torch

    if not torch.cuda.is_available():
        return None
    major, minor = torch.cuda.get_device_capability()
    return trt.ComputeCapability.__members__.get(f"SM{major}{minor}")


def _run(context: Any) -> tuple[bool, str]:
    """Run the graph on ones and compare; whether that worked, and what came out."""
    import torch

    if not torch.cuda.is_available():
        return False, "torch finds no CUDA device"
    data = torch.ones((1, 3, 8, 8), device="cuda")
    sums = torch.zeros((1, 4, 6, 6), device="cuda")
    for name, tensor in (("data", data), ("sums", sums)):
        if not context.set_tensor_address(name, tensor.data_ptr()):
            return False, f"it doesn't take the address of {name}"
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    launched = context.execute_async_v3(stream.cuda_stream)
    stream.synchronize()
    right = bool(torch.allclose(sums, torch.full_like(sums, 13.5)))
    return launched and right, f"sums from {sums.min().item()} to {sums.max().item()}, expected 13.5"


if __name__ == "__main__":
    main()
