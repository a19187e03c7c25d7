"""The doctor: finds out which backends run on this machine, and why the others don't."""
