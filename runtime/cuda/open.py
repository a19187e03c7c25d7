"""Opens CUDA through whichever binding is installed."""

from __future__ import annotations

from . import cuda_python, pycuda_driver
from .contract import Binding, Cuda, CudaError


def open_cuda(device: int = 0, binding: Binding | None = None) -> Cuda:
    """Open the device of that index through `binding`; None takes cuda-python, or pycuda where that isn't installed.

    Raises CudaError where there is no binding, no driver or no such device.
    """
    if binding == "cuda-python":
        return cuda_python.CudaPython(cuda_python.import_library(), device)
    if binding == "pycuda":
        return pycuda_driver.PyCuda(pycuda_driver.import_library(), device)
    if binding is not None:
        raise CudaError(f"binding {binding!r}, expected 'cuda-python' or 'pycuda'")
    try:
        cudart = cuda_python.import_library()
    except CudaError as missing:
        try:
            driver = pycuda_driver.import_library()
        except CudaError:
            raise missing from None
        return pycuda_driver.PyCuda(driver, device)
    return cuda_python.CudaPython(cudart, device)


def pci_bus_id(device: int) -> str | None:
    """The PCI bus id of the device of that index, such as "0000:01:00.0", by which NVIDIA's other tools know it.

    None where there is no binding, no driver or no such device. No CUDA context is created: that would take memory.
    """
    for binding in (cuda_python, pycuda_driver):
        try:
            return binding.pci_bus_id(binding.import_library(), device)
        except CudaError:
            continue
    return None
