"""In which order a run sees its images: every epoch all of them once, in a new random order.

All functions are pure: sample n of a run follows from the seed and n (and the batch, where images are grouped).
"""

from __future__ import annotations

import numpy as np


def shuffled(count: int, seed: int, epoch: int) -> np.ndarray:
    """A permutation of `count` images, int64 [count]."""
    return np.random.default_rng((seed, 0, epoch)).permutation(count)


def grouped_by_aspect(is_portrait: np.ndarray, seed: int, epoch: int, batch: int) -> np.ndarray:
    """A permutation in which the batches are all landscape or all portrait as far as the counts allow.

    `is_portrait` bool [n]. Sample n of the run belongs to batch n // `batch`, so batches lie across the borders of
    epochs. What fills no batch of its own kind lies at the epoch's end: at most two batches there are mixed.
    """
    count = len(is_portrait)
    order = shuffled(count, seed, epoch)
    first = epoch * count  # sample number
    # The epoch's first samples complete a batch that the epoch before began.
    head = min(count, -first % batch)
    kinds = [order[~is_portrait[order]], order[is_portrait[order]]]
    kinds.sort(key=len, reverse=True)  # the border batches are of the more frequent kind where that suffices
    common, rare = kinds
    taken = min(head, len(common))
    start = np.concatenate([common[:taken], rare[: head - taken]])
    common, rare = common[taken:], rare[head - taken :]
    full = [kind[: len(kind) // batch * batch].reshape(-1, batch) for kind in (common, rare)]
    batches = np.concatenate(full)
    rest = [kind[len(kind) // batch * batch :] for kind in (rare, common)]
    # Drawn from another stream than the permutation.
    batches = batches[np.random.default_rng((seed, 2, epoch)).permutation(len(batches))]
    return np.concatenate([start, batches.reshape(-1), *rest])
