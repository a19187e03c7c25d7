"""Where ONNX Runtime finds CUDA, cuDNN and TensorRT, and in one line why it does not.

Its GPU providers are linked to these libraries and look for them where the system does, not in wheels. Its
`preload_dlls` (1.21 and later) loads those of wheels; TensorRT's come with importing `tensorrt`. What neither found is
only told on a log, while the session runs on the CPU: so it is asked for here.
"""

from __future__ import annotations

import ctypes
import io
import platform
import re
import warnings
from contextlib import redirect_stdout, suppress
from pathlib import Path
from typing import Any

from ...command_names import DOCTOR
from ...machine.cuda_libraries import cuda_libraries, cuda_mismatch, driver_problem
from ...machine.gpus import list_gpus
from ..onnx_file import first_line

CUDNN = "libcudnn.so.9"  # of every onnxruntime-gpu since 1.19; loaded when the first convolution runs
_INSTALL = "pip install 'onnxruntime-gpu[cuda,cudnn]'"


def preload(library: Any) -> str | None:
    """Load the CUDA and cuDNN of wheels into this process, for a build of ONNX Runtime that was linked to them.

    Returns one line with what was found nowhere and the package to install, None where nothing is missing. It is no
    error by itself: what this system has elsewhere may still serve.
    """
    cuda = str(getattr(library, "cuda_version", ""))
    if not cuda:
        return None
    named = f"onnxruntime-gpu {library.__version__}, built for CUDA {cuda.split('.')[0]},"
    if not hasattr(library, "preload_dlls"):
        return f"{named} takes no CUDA from wheels, which 1.21 and later do: {_INSTALL.replace(']', ']>=1.21')}"
    said = io.StringIO()  # it prints, and our stdout may be somebody's JSON
    try:
        with redirect_stdout(said), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            library.preload_dlls()
    except Exception as error:  # whatever it is, the session that follows says whether it matters
        return f"{named} could not load CUDA from wheels ({first_line(error)}): {_INSTALL}"
    missing = [re.split(r"[/\\]", name)[-1] for name in re.findall(r"Failed to load (\S+?): ", said.getvalue())]
    if platform.system() == "Linux" and not is_loadable(CUDNN):
        missing.append(CUDNN)  # it passes over that one without a word
    if not missing:
        return None
    return _mismatch() or f"{named} does not find {', '.join(dict.fromkeys(missing))}: {_INSTALL}"


def preload_tensorrt(library: Any) -> str | None:
    """Load TensorRT for ONNX Runtime's provider. Returns one line where the provider will not find it, else None."""
    wanted = _tensorrt_wanted(library)
    try:
        import tensorrt as trt
    except Exception as error:  # its libraries may fail to load in any way
        which = f"TensorRT {wanted}" if wanted else "TensorRT"
        return f"ONNX Runtime's provider needs {which}, which cannot be imported ({first_line(error)}): {_pip(wanted)}"
    version = str(trt.__version__)
    if wanted is not None and version.split(".")[0] != str(wanted):
        return (
            f"onnxruntime-gpu {library.__version__} is linked to TensorRT {wanted}, but {version} is installed: "
            f"{_pip(wanted)} (engines are built anew then)"
        )
    return None


def why_not_started(library: Any, missing: str | None) -> str:
    """The likeliest reason why a GPU provider did not start, in one line that says what to do.

    `missing` is what `preload` or `preload_tensorrt` said.
    """
    if missing is not None:
        return missing
    ours = [found for found in cuda_libraries() if found.distribution == "onnxruntime-gpu"]
    unknown = f"mend the driver and CUDA libraries that its log above names ({DOCTOR} tells more)"
    return driver_problem(list_gpus().driver, ours) or unknown


def _mismatch() -> str | None:
    """Whether what is missing is so because the other libraries' wheels are of another CUDA."""
    libraries = [found for found in cuda_libraries() if found.distribution in ("onnxruntime-gpu", "torch")]
    return cuda_mismatch(libraries, list_gpus().driver)


def _tensorrt_wanted(library: Any) -> int | None:
    """TensorRT's major that ONNX Runtime's provider was linked to, as its file says; None where it can't be told."""
    if not getattr(library, "__file__", None):
        return None
    folder = Path(library.__file__).parent / "capi"
    for name in ("libonnxruntime_providers_tensorrt.so", "onnxruntime_providers_tensorrt.dll"):
        with suppress(OSError):
            found = re.search(rb"nvinfer(?:\.so\.|_)(\d+)", (folder / name).read_bytes())
            if found:
                return int(found[1])
    return None


def _pip(wanted: int | None) -> str:
    cuda = next((found.cuda for found in cuda_libraries() if found.distribution == "onnxruntime-gpu"), None)
    package = f"tensorrt-cu{cuda}" if cuda else "tensorrt"
    return f"pip install '{package}>={wanted},<{wanted + 1}'" if wanted else f"pip install {package}"


def is_loadable(name: str) -> bool:
    """Whether the system's loader has a library already, or finds it."""
    try:
        ctypes.CDLL(name)
    except OSError:
        return False
    return True
