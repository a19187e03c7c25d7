"""Loads CUDA, cuDNN and TensorRT for ONNX Runtime, and says in one line which of them is missing.

The GPU providers are linked to these libraries and search the system's paths, not Python wheels. ONNX Runtime's
`preload_dlls` (1.21 and later) loads the libraries of wheels; importing `tensorrt` loads TensorRT's. ONNX Runtime only
logs a missing library and runs on the CPU, so this module finds it out beforehand.
"""

from __future__ import annotations

import ctypes
import importlib.util
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

CUDNN = "libcudnn.so.9"  # for every onnxruntime-gpu since 1.19; loaded by the first convolution
_INSTALL = "pip install 'onnxruntime-gpu[cuda,cudnn]'"


def preload(library: Any) -> str | None:
    """Load CUDA and cuDNN from wheels into this process, for a build of ONNX Runtime that is linked to them.

    Returns one line that names the missing libraries and the package to install, None where nothing is missing. A
    missing library is no error yet: the system may have it elsewhere.
    """
    cuda = str(getattr(library, "cuda_version", ""))
    if not cuda:
        return None
    named = f"onnxruntime-gpu {library.__version__}, built for CUDA {cuda.split('.')[0]},"
    if not hasattr(library, "preload_dlls"):
        return f"{named} can't load CUDA from wheels, 1.21 and later can: {_INSTALL.replace(']', ']>=1.21')}"
    said = io.StringIO()  # the function prints, and our stdout may be JSON
    try:
        with redirect_stdout(said), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for folder in _folders_elsewhere(library):
                library.preload_dlls(directory=str(folder))
            said.seek(0)
            said.truncate()  # what one folder lacks, another may have
            library.preload_dlls()
    except Exception as error:  # the session that follows shows whether it matters
        return f"{named} could not load CUDA from wheels ({first_line(error)}): {_INSTALL}"
    missing = [re.split(r"[/\\]", name)[-1] for name in re.findall(r"Failed to load (\S+?): ", said.getvalue())]
    if platform.system() == "Linux" and not is_loadable(CUDNN):
        missing.append(CUDNN)  # preload_dlls doesn't report it
    if not missing:
        return None
    return _mismatch() or f"{named} does not find {', '.join(dict.fromkeys(missing))}: {_INSTALL}"


def _folders_elsewhere(library: Any) -> list[Path]:
    """Folders of CUDA's wheels in other site-packages than ONNX Runtime's own, where `preload_dlls` doesn't look.

    So it is in a virtual environment over the system's packages, and with `pip install --target`.
    """
    spec, file = importlib.util.find_spec("nvidia"), getattr(library, "__file__", None)
    if spec is None or file is None:
        return []
    own = Path(file).resolve().parents[1]
    roots = [Path(root).resolve() for root in spec.submodule_search_locations or ()]
    return [folder for root in roots if root.parent != own for folder in sorted(root.glob("*/lib"))]


def preload_tensorrt(library: Any) -> str | None:
    """Load TensorRT for ONNX Runtime's provider. Returns one line where the provider won't find it, else None."""
    wanted = _tensorrt_wanted(library)
    try:
        import tensorrt as trt
    except Exception as error:  # loading its libraries may raise anything
        which = f"TensorRT {wanted}" if wanted else "TensorRT"
        return f"ONNX Runtime's provider needs {which}, which cannot be imported ({first_line(error)}): {_pip(wanted)}"
    version = str(trt.__version__)
    if wanted is not None and version.split(".")[0] != str(wanted):
        return (
            f"onnxruntime-gpu {library.__version__} is linked to TensorRT {wanted}, but {version} is installed: "
            f"{_pip(wanted)} (its engines are then built again)"
        )
    return None


def why_not_started(library: Any, missing: str | None) -> str:
    """The most likely reason why a GPU provider didn't start, in one line that says what to do.

    `missing` is the line that `preload` or `preload_tensorrt` returned.
    """
    if missing is not None:
        return missing
    ours = [found for found in cuda_libraries() if found.distribution == "onnxruntime-gpu"]
    unknown = f"repair the driver or the CUDA libraries that its log above names ({DOCTOR} tells more)"
    gpus = list_gpus()
    if gpus.driver_unknown:
        return f"{unknown}; NVIDIA's driver cannot be checked: {gpus.problem}"
    return driver_problem(gpus.driver, ours) or unknown


def _mismatch() -> str | None:
    """One line where libraries are missing because the installed wheels are for another CUDA major, else None."""
    libraries = [found for found in cuda_libraries() if found.distribution in ("onnxruntime-gpu", "torch")]
    return cuda_mismatch(libraries, list_gpus().driver)


def _tensorrt_wanted(library: Any) -> int | None:
    """The TensorRT major that ONNX Runtime's provider is linked to, read from its file; None where unknown."""
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
    """Whether the system's loader finds a shared library, or has loaded it already."""
    try:
        ctypes.CDLL(name)
    except OSError:
        return False
    return True
