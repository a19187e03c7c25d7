"""Runs detectors and scores them: preprocessing, backends, NMS on the host, COCO evaluation. Needs no torch."""
