"""Scripts that measure speed, memory and AP, each against a baseline; every documented figure comes from here."""
