"""Detects on images and videos, and hands what is found to the result files."""
