"""CUDA as far as a backend needs it: one interface over two bindings, and images in a GPU's memory."""

from .contract import Binding, Cuda, CudaError, Device, Graphs, OutOfMemory
from .open import open_cuda, pci_bus_id

__all__ = ["Binding", "Cuda", "CudaError", "Device", "Graphs", "OutOfMemory", "open_cuda", "pci_bus_id"]
