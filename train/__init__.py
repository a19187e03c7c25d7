"""Training of ATSS, RetinaNet and FCOS detectors in PyTorch: `train.api.train`, or `python -m train`."""
