"""Conversion of published checkpoints of other implementations."""
