"""A stand-in for `triton_python_backend_utils`, the module that Triton's Python backend brings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import ModuleType
from typing import NamedTuple

import numpy as np


class TritonError(Exception):
    """An error as a response holds it."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text

    def message(self) -> str:
        return self.text


class Tensor:
    """A named array. The real one refuses NumPy's text and arrays that are not contiguous."""

    def __init__(self, name: str, array: np.ndarray, on_gpu: bool = False) -> None:
        assert array.dtype.kind not in "US"
        assert array.flags.c_contiguous
        self._name, self._array, self._on_gpu = name, array, on_gpu

    def name(self) -> str:
        return self._name

    def as_numpy(self) -> np.ndarray:
        if self._on_gpu:
            raise RuntimeError("Tensor is stored in GPU and cannot be converted to NumPy.")
        return self._array


class PreferredMemory(NamedTuple):
    """Where the outputs of another model shall lie."""

    kind: int
    device: int = 0


CPU_MEMORY = 1


class InferenceResponse:
    """The answer to one request."""

    def __init__(self, output_tensors: Sequence[Tensor] = (), error: TritonError | None = None) -> None:
        self.tensors = {tensor.name(): tensor for tensor in output_tensors}
        self._error = error

    def has_error(self) -> bool:
        return self._error is not None

    def error(self) -> TritonError | None:
        return self._error


class Request:
    """A request as `execute` gets it."""

    def __init__(self, *outputs: str, is_cancelled: bool = False, parameters: str = "", **inputs: np.ndarray) -> None:
        self.inputs = {name: Tensor(name, array) for name, array in inputs.items()}
        self._outputs, self._is_cancelled, self._parameters = list(outputs), is_cancelled, parameters

    def requested_output_names(self) -> list[str]:
        return self._outputs

    def is_cancelled(self) -> bool:
        return self._is_cancelled

    def parameters(self) -> str:
        return self._parameters


Models = dict[str, Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]]


def python_backend(models: Models) -> ModuleType:
    """The module. `models` are the server's other models, which a request of the tested one can run.

    They run on a GPU, so their outputs lie there unless the request wants them in the CPU's memory.
    """

    class InferenceRequest:
        def __init__(
            self,
            model_name: str,
            requested_output_names: list[str],
            inputs: list[Tensor],
            preferred_memory: PreferredMemory | None = None,
        ) -> None:
            self._model, self._wanted = model_name, requested_output_names
            self._inputs = {tensor.name(): tensor.as_numpy() for tensor in inputs}
            self._on_gpu = preferred_memory is None or preferred_memory.kind != CPU_MEMORY

        def exec(self) -> InferenceResponse:
            try:
                found = models[self._model](self._inputs)
            except Exception as error:
                return InferenceResponse(error=TritonError(str(error)))
            given = [name for name in self._wanted if name in found]
            return InferenceResponse([Tensor(name, found[name], self._on_gpu) for name in given])

    module = ModuleType("triton_python_backend_utils")
    names = {
        "TritonError": TritonError,
        "Tensor": Tensor,
        "InferenceResponse": InferenceResponse,
        "InferenceRequest": InferenceRequest,
        "PreferredMemory": PreferredMemory,
        "TRITONSERVER_MEMORY_CPU": CPU_MEMORY,
        "get_input_tensor_by_name": lambda request, name: request.inputs.get(name),
        "get_output_tensor_by_name": lambda response, name: response.tensors.get(name),
    }
    vars(module).update(names)
    return module
