"""What is known of the machine: processor, GPUs, CUDA libraries, and the conditions of a measurement."""
