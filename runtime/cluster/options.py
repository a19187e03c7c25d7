"""The command-line options that share a run out to a Ray cluster."""

from __future__ import annotations

import argparse
from dataclasses import dataclass

from ..bounds import Positive, argument

LOCAL = "local"  # the address that stands for a Ray of the run's own, on this machine


@dataclass(frozen=True)
class ClusterOptions:
    """Which cluster a run is shared out to, and how many detectors it has there."""

    address: str = LOCAL  # LOCAL, "auto" (the cluster that this machine is a node of), or HOST:PORT
    actors: int | None = None  # None: a detector for each GPU, or else for each node


def add_cluster_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command-line options that `parse_cluster` reads."""
    group = parser.add_argument_group("many machines (extra `ray`)")
    group.add_argument(
        "--ray",
        nargs="?",
        const=LOCAL,
        metavar="ADDRESS",
        help="share the images out to a Ray cluster: auto, or HOST:PORT; without an address Ray starts on this machine "
        "for the run. Nodes read model and images from the same paths",
    )
    group.add_argument(
        "--actors", type=argument(Positive), metavar="N", help="detectors (one for each GPU, or else for each node)"
    )


def parse_cluster(parser: argparse.ArgumentParser, options: argparse.Namespace) -> ClusterOptions | None:
    """The cluster that a command line with `add_cluster_arguments` asks for; None without --ray.

    Ends the program with the parser's error for options that cannot work.
    """
    if options.ray is None:
        if options.actors is not None:
            parser.error("--actors is for --ray")
        return None
    if options.device != 0:
        parser.error("--device: Ray gives each actor its GPU; leave the option out with --ray")
    return ClusterOptions(options.ray, options.actors)
