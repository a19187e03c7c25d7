"""The processors that a graph may have its form for. Free of onnx, so that a command can describe its options."""

from __future__ import annotations

from typing import Literal

Processor = Literal["cpu", "gpu"]
