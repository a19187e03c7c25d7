"""The order of a run's images: a new random permutation for every epoch.

All functions are pure: the n-th image of a run follows from the seed and n, and from the batch size where images are
grouped.
"""

from __future__ import annotations

import numpy as np


def shuffled(count: int, seed: int, epoch: int) -> np.ndarray:
    """The permutation of `count` images in an epoch, int64 [count]."""
    return np.random.default_rng((seed, 0, epoch)).permutation(count)


def grouped_by_aspect(is_portrait: np.ndarray, seed: int, epoch: int, batch: int) -> np.ndarray:
    """The permutation of an epoch in which batches are all landscape or all portrait as far as possible, int64 [n].

    `is_portrait` is bool [n]. Sample n of the run belongs to batch n // `batch`, so a batch may span two epochs. Images
    that don't fill a batch of their own kind are at the epoch's end, where at most two batches are mixed.
    """
    count = len(is_portrait)
    order = shuffled(count, seed, epoch)
    first = epoch * count  # sample number
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
