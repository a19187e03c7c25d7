"""The machine: its processor, its GPUs, its CUDA libraries, and the conditions of a measurement."""
