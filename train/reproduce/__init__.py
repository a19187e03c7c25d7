"""The ATSS paper in miniature: its systems, trained from scratch on `shapes` on a CPU, over several seeds."""
