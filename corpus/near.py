"""Pictures that look alike though their pixels differ: resized, recoded or touched-up copies."""

from itertools import combinations

import numpy as np

BANDS, BITS = 8, 8


def pairs(phash: np.ndarray, dhash: np.ndarray, distance: int) -> np.ndarray:
    """Index pairs [n, 2], first < second, whose 64-bit hashes both differ in `distance` bits at most.

    Hashes of 8 bands of 8 bits that differ in 6 bits at most agree in two whole bands, so only pictures that share two
    bands of their pHash are compared. A distance over 6 finds most pairs, not all.
    """
    bands = [((phash >> np.uint64(BITS * i)) & np.uint64(2**BITS - 1)).astype(np.uint16) for i in range(BANDS)]
    found = [_within(phash, dhash, first << np.uint16(BITS) | second, distance) for first, second in combinations(bands, 2)]
    return np.unique(np.concatenate(found), axis=0) if found else np.empty((0, 2), dtype=np.int64)


def _within(phash: np.ndarray, dhash: np.ndarray, key: np.ndarray, distance: int) -> np.ndarray:
    """Near pairs among those of equal key: each is compared with the next, the one after it, and so on."""
    order = np.argsort(key, kind="stable")
    key, phash, dhash = key[order], phash[order], dhash[order]
    found = [np.empty((0, 2), dtype=np.int64)]
    alive: np.ndarray | slice = slice(None)
    for offset in range(1, len(key)):
        # While most rows have an equal so far ahead, whole arrays side by side are compared faster than chosen rows are gathered.
        here, there = (slice(-offset), slice(offset, None)) if isinstance(alive, slice) else (alive, alive + offset)
        equal = key[here] == key[there]
        near = equal & (np.bitwise_count(phash[here] ^ phash[there]) <= distance)
        candidates = np.flatnonzero(near) if isinstance(alive, slice) else alive[near]
        close = candidates[np.bitwise_count(dhash[candidates] ^ dhash[candidates + offset]) <= distance]
        found.append(np.sort(np.stack([order[close], order[close + offset]], axis=1), axis=1))
        if not isinstance(alive, slice):
            alive = alive[equal]
        elif np.count_nonzero(equal) < len(key) / 4:
            alive = np.flatnonzero(equal)
        if not isinstance(alive, slice):
            alive = alive[alive + offset + 1 < len(key)]
            if not len(alive):
                break
    return np.concatenate(found)
