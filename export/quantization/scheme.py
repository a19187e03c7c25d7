"""What a conversion makes of a float32 file: the precision, and how an 8-bit file is laid out and calibrated.

Free of onnx, so that a command can describe its options where onnx isn't installed.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, get_args

from runtime.errors import UserError
from runtime.manifest import Precision
from runtime.names import unknown_name

from ..calibration import Method
from ..onnx_model.processor import Processor

CALIBRATION_IMAGES = 500  # as many as MLPerf's rules allow
Target = Literal["tensorrt", "cpu", "cpu-vnni"]  # what a file is for; of int8 see `qdq.py`


@dataclasses.dataclass(frozen=True)
class Scheme:
    """A conversion of a float32 file. `method` matters for int8 and fp8 alone.

    `target` decides the form of NMS and the group norms, and the layout of int8.

    Raises UserError for an unknown name, and for fp8 on a CPU.
    """

    precision: Precision
    target: Target = "tensorrt"
    method: Method = "max"  # benchmarks/calibration_methods.py compares the methods

    def __post_init__(self) -> None:
        """Refuse unknown names before anything is loaded or calibrated."""
        settings: dict[str, tuple[Any, Any]] = {
            "precision": (self.precision, Precision),
            "target": (self.target, Target),
            "method": (self.method, Method),
        }
        for setting, (given, names) in settings.items():
            if given not in get_args(names):
                unknown_name(given, setting, names)
        if self.precision == "fp8" and self.processor == "cpu":
            raise UserError(f"fp8 is for GPUs, no CPU computes in it: leave --target {self.target} out")

    @property
    def processor(self) -> Processor:
        """The processor whose form the file has."""
        return "gpu" if self.target == "tensorrt" else "cpu"

    @property
    def is_quantized(self) -> bool:
        """Whether activations are quantized, so that their ranges must be calibrated on images."""
        return self.precision in ("int8", "fp8")
