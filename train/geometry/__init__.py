"""Boxes, anchors, and the coding of one by the other."""
