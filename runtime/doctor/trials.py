"""Starts every backend on a graph of one convolution, each in its own process.

A library that doesn't fit the processor or the driver may crash or hang the process that loads it; the doctor's process
survives. `python -m runtime.doctor.trials BACKEND` is such a trial; it prints one line of JSON.
"""

from __future__ import annotations

if __name__ == "__main__":  # before the other imports, which take their time: Ctrl-C ends them in one line
    from runtime.interrupts import end_at_once

    end_at_once()

import base64
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from ..backends import BackendError
from ..backends.onnx_file import first_line
from ..backends.openvino_backend import shared_core
from ..backends.options import BackendOptions
from ..backends.ort.libraries import preload_tensorrt
from ..backends.ort.session import PROVIDERS, check_available, import_library, open_session, rtx_devices
from ..backends.trt.engine import import_tensorrt
from ..cuda import open_cuda
from ..errors import UserError
from ..names import unknown_name
from ..temporaries import scratch_folder

Backend = Literal["cpu", "openvino", "cuda", "ort-tensorrt", "ort-rtx", "tensorrt"]
BACKENDS: tuple[Backend, ...] = get_args(Backend)
LIMIT_S = 90  # a GPU's first start loads a gigabyte of libraries
# An ONNX file: y is x [1, 1, 4, 4] convolved with a 3 × 3 kernel of ones, padded with zeros; IR 8, opset 17. It is a
# convolution because convolutions need cuDNN. `tests/runtime/doctor/test_doctor_trials.py` rebuilds and compares it.
PROBE = base64.b64decode(
    "CAg6mgEKIgoBeAoBdxIBeSIEQ29udioRCgRwYWRzQAFAAUABQAGgAQcSBXByb2JlKjMIAQgBCAMIAxABQgF3SiQAAIA/AACAPwAAgD8AAIA/AACAPwAA"
    "gD8AAIA/AACAPwAAgD9aGwoBeBIWChQIARIQCgIIAQoCCAEKAggECgIIBGIbCgF5EhYKFAgBEhAKAggBCgIIAQoCCAQKAggEQgQKABAR"
)
PROBE_INPUT = np.ones((1, 1, 4, 4), np.float32)
PROBE_OUTPUT = np.array([[[[4, 6, 6, 4], [6, 9, 9, 6], [6, 9, 9, 6], [4, 6, 6, 4]]]], np.float32)


@dataclass(frozen=True)
class Trial:
    """The result of starting one backend."""

    backend: Backend
    runs: bool
    said: str  # one line: what runs and where, or why nothing does


def run_trials(backends: Sequence[Backend] = BACKENDS, limit_s: float = LIMIT_S) -> list[Trial]:
    """Start the backends, all at the same time, for at most `limit_s` seconds. Never raises."""
    until = time.monotonic() + limit_s
    # The package's folder comes last: it is found where the package isn't installed, and hides nothing.
    paths = [os.environ.get("PYTHONPATH", ""), str(Path(__file__).resolve().parents[2])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in paths if path)}
    started = []
    for backend in backends:
        command = [sys.executable, "-m", "runtime.doctor.trials", backend]
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
        )
        started.append((backend, process))
    return [_wait(backend, process, until) for backend, process in started]


def _wait(backend: Backend, process: subprocess.Popen[bytes], until: float) -> Trial:
    try:
        output, log = process.communicate(timeout=max(until - time.monotonic(), 0.1))
    except subprocess.TimeoutExpired:
        process.kill()
        with suppress(subprocess.TimeoutExpired):  # a process that hangs in the driver can't even be killed
            process.communicate(timeout=5)
        return Trial(backend, False, "its library did not answer in time and was stopped")
    return _answer(backend, process.returncode, output.decode("utf-8", "replace"), log.decode("utf-8", "replace"))


def attempt(backend: Backend) -> Trial:
    """Start one backend in this process. Never raises, but its library may crash the process."""
    try:
        said = start_backend(backend)
    except UserError as error:
        # Drop the alternatives that commands offer: the question is why this backend doesn't start.
        return Trial(backend, False, re.sub(r"; or (allow it|choose another) .*$", "", str(error)))
    except Exception as error:  # libraries raise anything
        return Trial(backend, False, f"{type(error).__name__}: {first_line(error)}")
    return Trial(backend, True, said)


def start_backend(backend: Backend) -> str:
    """Start a backend and say in one line what runs and where. Raises BackendError and whatever its library raises."""
    match backend:
        case "cpu" | "cuda":
            return _onnxruntime(backend)
        case "openvino":
            return _openvino()
        case "ort-tensorrt":
            return _onnxruntime_tensorrt()
        case "ort-rtx":
            return _onnxruntime_rtx()
        case "tensorrt":
            return _tensorrt()
        case _:
            unknown_name(backend, "backend", Backend)


def _onnxruntime(backend: Literal["cpu", "cuda"]) -> str:
    library = _quiet_onnxruntime()
    with scratch_folder() as folder:
        path = folder / "probe.onnx"
        path.write_bytes(PROBE)
        try:
            session = open_session(library, path, BackendOptions(backend=backend))
        except BackendError as error:
            raise BackendError(str(error).removeprefix(f"{path}: ")) from error
    _check(session.run(["y"], {"x": PROBE_INPUT})[0])
    return f"ONNX Runtime {library.__version__}, {session.get_providers()[0]}"


def _onnxruntime_tensorrt() -> str:
    library = _quiet_onnxruntime()
    check_available(library, PROVIDERS["ort-tensorrt"])
    _onnxruntime("cuda")  # it needs everything that CUDA's provider needs
    if missing := preload_tensorrt(library):
        raise BackendError(missing)
    return f"ONNX Runtime {library.__version__}, its libraries load (not run: it builds an engine when it starts)"


def _onnxruntime_rtx() -> str:
    library = _quiet_onnxruntime()
    devices = rtx_devices(library)
    if not devices:
        raise BackendError("NVIDIA's plugin sees no RTX GPU")
    options = library.SessionOptions()
    options.log_severity_level = 4
    options.add_provider_for_devices([devices[0]], {})
    _check(library.InferenceSession(PROBE, options).run(["y"], {"x": PROBE_INPUT})[0])
    return f"ONNX Runtime {library.__version__}, {devices[0].ep_name}, {len(devices)} GPUs"


def _openvino() -> str:
    core = shared_core()
    import openvino

    compiled = core.compile_model(core.read_model(PROBE), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    _check(compiled(PROBE_INPUT)[0])
    return f"OpenVINO {openvino.__version__.split('-')[0]}, CPU"


def _tensorrt() -> str:
    found, missing = [], []
    for flavor in ("tensorrt", "rtx"):
        try:
            trt = import_tensorrt(flavor)
        except Exception as error:  # libraries that don't load raise anything
            missing.append(error)
        else:
            found.append(f"TensorRT{' for RTX' if flavor == 'rtx' else ''} {trt.__version__}")
    if not found:
        raise missing[0]
    libraries = ", ".join(found)
    try:
        cuda = open_cuda()
        with cuda.current():
            free = cuda.free_bytes()
        cuda.close()
    except UserError as error:
        raise BackendError(f"{libraries} can be imported, but {error}") from error
    device = cuda.device
    return (
        f"{libraries}, {device.name} ({device.compute_capability}) through {cuda.binding}, {free / 2**30:.1f} of "
        f"{device.memory_bytes / 2**30:.1f} GiB free (no engine was run)"
    )


def _quiet_onnxruntime() -> Any:
    library = import_library()
    library.set_default_logger_severity(4)  # our own line says why a provider doesn't start
    return library


def _check(output: np.ndarray) -> None:
    if not np.array_equal(output, PROBE_OUTPUT):
        raise BackendError(f"it computes wrong numbers: {np.asarray(output).ravel().tolist()}")


def _answer(backend: Backend, code: int, output: str, log: str) -> Trial:
    """The result of a trial from its process' exit code, output and log."""
    lines = output.splitlines()
    if code == 0 and lines:
        try:
            answer = json.loads(lines[-1])
            return Trial(backend, bool(answer["runs"]), " ".join(str(answer["said"]).split()))
        except (ValueError, KeyError, TypeError):
            pass
    if code < 0:
        try:
            name = signal.Signals(-code).name
        except ValueError:
            name = f"signal {-code}"
        return Trial(backend, False, f"its library crashed the process ({name}): install another version of it")
    told = [line.strip() for line in log.splitlines() if line.strip()]
    return Trial(backend, False, f"exit code {code}: {told[-1][:200] if told else 'no message'}")


def main(arguments: Sequence[str]) -> int:
    """Start the backend that is named and print the result as JSON. Ends the process, or returns 2 for a bad name."""
    name = arguments[0] if arguments else ""
    backend = next((known for known in BACKENDS if known == name), None)
    if backend is None:
        print(f"error: {name!r}, expected one of {', '.join(BACKENDS)}", file=sys.stderr)
        return 2
    trial = attempt(backend)
    print(json.dumps({"runs": trial.runs, "said": trial.said}), flush=True)
    os._exit(0)  # a library may crash at shutdown, which must not change the result


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
