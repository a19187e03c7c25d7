"""The network (backbone, feature pyramid, head), and the postprocessing of its outputs up to NMS."""
