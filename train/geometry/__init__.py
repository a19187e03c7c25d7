"""Boxes, anchors, and the codes that turn anchors into boxes."""
