"""What `scripts/gpu_report.sh` measures on a GPU: a module for each part, which also runs by itself."""
