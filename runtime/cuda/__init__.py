"""CUDA as far as a backend needs it: one interface over two bindings, cuda-python and pycuda."""

from .contract import Binding, Cuda, CudaError, Device, Graphs, OutOfMemory
from .open import open_cuda, pci_bus_id

__all__ = ["Binding", "Cuda", "CudaError", "Device", "Graphs", "OutOfMemory", "open_cuda", "pci_bus_id"]
