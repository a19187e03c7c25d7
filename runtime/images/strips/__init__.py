"""Reads large images a strip of rows at a time, so that memory never holds the image.

A strip is written as a small file of the same format, which the usual decoder of the format reads. Its pixels are
those that decoding the whole file gives.
"""

from .opening import STREAMED, StripImage, open_strips

__all__ = ["STREAMED", "StripImage", "open_strips"]
