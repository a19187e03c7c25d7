"""Images in and out: files and videos read, laid on canvases, drawn on."""

from .decoding import MAX_PIXELS, SUFFIXES, Decoded, ImageError, decode, decode_image, whole

__all__ = ["MAX_PIXELS", "SUFFIXES", "Decoded", "ImageError", "decode", "decode_image", "whole"]
