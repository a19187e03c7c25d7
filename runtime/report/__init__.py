"""One HTML page that shows what detectors do: figures with intervals, kinds of errors, images, what models changed."""
