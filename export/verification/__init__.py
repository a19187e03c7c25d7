"""Is a file the detector that it was made of? Both run on the same images, and their numbers are compared."""
