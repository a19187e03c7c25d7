"""Is a file the detector that it was made of? Both sides run, and their numbers are compared."""
