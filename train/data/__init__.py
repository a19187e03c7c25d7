"""Training batches from images and COCO annotations."""
