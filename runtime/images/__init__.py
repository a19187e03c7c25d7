"""Pixels in and out: decodes image and video files, lays images on canvases, draws detections."""

from .decoding import MAX_PIXELS, SUFFIXES, Decoded, decode, decode_image, whole
from .headers import ImageError
from .size import image_size

__all__ = ["MAX_PIXELS", "SUFFIXES", "Decoded", "ImageError", "decode", "decode_image", "image_size", "whole"]
