"""Tests of the scripts below `benchmarks/`."""
