"""The order of a run's images: a new random permutation for every epoch.

The n-th image of a run follows from the seed and n, and from the batch size where images are grouped.
"""

from __future__ import annotations

import bisect

import numpy as np

from .repeats import rows_of_epoch


class EpochOrder:
    """The images of a run by sample number, as rows 0 … `len(is_portrait)` − 1.

    `is_portrait` is bool [rows]. With `group` above 0, batches of that size are all landscape or all portrait as far as
    possible. `factors` [rows] says how often an epoch has each image (see `repeats`); None: once.
    """

    def __init__(self, is_portrait: np.ndarray, seed: int, group: int = 0, factors: np.ndarray | None = None) -> None:
        self._is_portrait, self._seed, self._group, self._factors = is_portrait, seed, group, factors
        self._starts = [0]  # the first sample of each epoch, as far as they had to be counted
        self._cached = (-1, np.empty(0, dtype=np.int64))  # an epoch and its rows in order

    def around(self, n: int) -> tuple[np.ndarray, int]:
        """The rows of sample `n`'s epoch in their order, int64 [m], and which of them is the sample's."""
        epoch, first = self._epoch_of(n)
        if self._cached[0] != epoch:
            self._cached = (epoch, self._rows_in_order(epoch, first))
        return self._cached[1], n - first

    def _epoch_of(self, n: int) -> tuple[int, int]:
        """The epoch of sample `n`, and the number of that epoch's first sample."""
        count = len(self._is_portrait)
        if self._factors is None:
            return n // count, n // count * count
        while self._starts[-1] <= n:
            rows = rows_of_epoch(self._factors, self._seed, len(self._starts) - 1)
            self._starts.append(self._starts[-1] + len(rows))
        epoch = bisect.bisect_right(self._starts, n) - 1
        return epoch, self._starts[epoch]

    def _rows_in_order(self, epoch: int, first: int) -> np.ndarray:
        rows = None if self._factors is None else rows_of_epoch(self._factors, self._seed, epoch)
        is_portrait = self._is_portrait if rows is None else self._is_portrait[rows]
        if self._group:
            order = grouped_by_aspect(is_portrait, self._seed, epoch, self._group, first)
        else:
            order = shuffled(len(is_portrait), self._seed, epoch)
        return order if rows is None else rows[order]


def shuffled(count: int, seed: int, epoch: int) -> np.ndarray:
    """The permutation of `count` images in an epoch, int64 [count]."""
    return np.random.default_rng((seed, 0, epoch)).permutation(count)


def grouped_by_aspect(
    is_portrait: np.ndarray, seed: int, epoch: int, batch: int, first: int | None = None
) -> np.ndarray:
    """The permutation of an epoch in which batches are all landscape or all portrait as far as possible, int64 [n].

    `is_portrait` is bool [n], and `first` the number of the epoch's first sample; None: all epochs have n samples.
    Sample m of the run belongs to batch m // `batch`, so a batch may span two epochs. Images that don't fill a batch of
    their own kind are at the epoch's end, where at most two batches are mixed.
    """
    count = len(is_portrait)
    order = shuffled(count, seed, epoch)
    first = epoch * count if first is None else first
    # The epoch's first samples complete a batch that the previous epoch began.
    head = min(count, -first % batch)
    kinds = [order[~is_portrait[order]], order[is_portrait[order]]]
    kinds.sort(
        key=len, reverse=True
    )  # batches that span two epochs are of the more frequent kind if it has enough images
    common, rare = kinds
    taken = min(head, len(common))
    start = np.concatenate([common[:taken], rare[: head - taken]])
    common, rare = common[taken:], rare[head - taken :]
    full = [kind[: len(kind) // batch * batch].reshape(-1, batch) for kind in (common, rare)]
    batches = np.concatenate(full)
    rest = [kind[len(kind) // batch * batch :] for kind in (rare, common)]
    # The batches are shuffled with another random stream than the images.
    batches = batches[np.random.default_rng((seed, 2, epoch)).permutation(len(batches))]
    return np.concatenate([start, batches.reshape(-1), *rest])
