"""Mutated inputs for every reader of untrusted files: each is read with sense, or refused in one line.

A target (`targets/`) makes inputs from a valid one and reads them in a worker process (`worker.py`), which measures
time and memory and may crash. `test_fuzz.py` runs a fixed few of each; `scripts/fuzz.sh` runs many.
"""
