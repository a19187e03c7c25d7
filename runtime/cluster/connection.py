"""Connects to a Ray cluster, or starts Ray on this machine for the time of a run."""

from __future__ import annotations

import logging
import os
import re
import socket
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ..errors import UserError
from .options import LOCAL

CONNECT_S = 5.0  # how long an address may take to accept a connection
# Ray's C++ part prints what a user cannot act on, and statistics leave the machine unless they are switched off.
_QUIET = {"RAY_BACKEND_LOG_LEVEL": "fatal", "RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}


class ClusterError(UserError):
    """A cluster that cannot be reached, that lacks what was asked for, or that lost an actor for good."""


@contextmanager
def connected(address: str) -> Iterator[Any]:
    """Yield the module `ray`, connected to `address` (as in `ClusterOptions`) while the block runs.

    A connection that the process has already is used and left open. Raises ClusterError where Ray isn't installed and
    where the cluster cannot be reached.
    """
    ray = _import_ray()
    if ray.is_initialized():
        yield ray
        return
    if address != LOCAL:
        _require_listener(address)
    try:
        with warnings.catch_warnings(), _quiet():
            warnings.simplefilter("ignore")  # advice about the next release, to whoever wrote the call
            local: dict[str, Any] = {"include_dashboard": False} if address == LOCAL else {}
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **local)
    except Exception as error:  # ConnectionError, ValueError, RuntimeError: whatever keeps the cluster from answering
        raise ClusterError(
            f"cannot connect to Ray at {address}: {_first_sentence(error)}; start a cluster with ray start --head and "
            "give its HOST:PORT (set RAY_AUTH_MODE=token where it asks for its token), or --ray without an address to "
            "start Ray on this machine"
        ) from error
    try:
        yield ray
    finally:
        ray.shutdown()


def _import_ray() -> Any:
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import ray
            import ray.data
    except ImportError as error:
        raise ClusterError(
            f"--ray needs Ray with its data sets, which is not installed ({error}): install atss-toolkit with the "
            "extra ray"
        ) from error
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # what is lost is said in one line
    return ray


@contextmanager
def _quiet() -> Iterator[None]:
    """Nothing reaches stderr while the block runs: Ray's C++ part announces there that its log level was set."""
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _require_listener(address: str) -> None:
    """Raise ClusterError unless something listens at HOST:PORT; Ray itself would try for two minutes."""
    found = re.fullmatch(r"(?:ray://)?(\[[^\]]+\]|[^:]+):(\d{1,5})", address)
    if found is None:
        if address == "auto":
            return
        raise ClusterError(
            f"--ray is {address!r}, expected auto, HOST:PORT, or no address to start Ray on this machine"
        )
    try:
        with socket.create_connection((found[1].strip("[]"), int(found[2])), CONNECT_S):
            return
    except (OSError, OverflowError) as error:
        raise ClusterError(
            f"cannot connect to Ray at {address}: {error}; check the address that ray start --head printed, and that "
            "the port is open"
        ) from error


def _first_sentence(error: Exception) -> str:
    return str(error).strip().splitlines()[0].split(". ")[0].rstrip(".") if str(error).strip() else repr(error)
