"""Shares work out to the machines of a Ray cluster: connecting, the pool of actors, and what each actor runs."""
