"""Which anchors are trained on which object."""

from .atss import atss
from .types import NEGATIVE, Assigned

__all__ = ["NEGATIVE", "Assigned", "atss"]
