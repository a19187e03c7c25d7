"""Detects on large images tile by tile, and merges the detections of the tiles."""

from .detector import TiledDetector
from .settings import Tiles

__all__ = ["TiledDetector", "Tiles"]
