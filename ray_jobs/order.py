"""Passes over a group of samples: shuffled so that reading stays local, and shared out among the streams.

Shards are shuffled, then the rows of a few shards at a time: what is read together lies together, and the order is a
function of a key and the pass alone.
"""

import hashlib

import numpy as np

SHARDS_AT_ONCE = 4
# Passes that are remembered: streams are not all in the same one.
ORDERS = 4


class Passes:
    """Endless passes over the rows of one group, each visiting every row once over all streams.

    Args:
        positions: of the rows in the release's index.
        shards: the shard of each.
        key: with the pass's number it decides the order.
        streams: among how many the passes are shared: stream s takes every streams-th place from s.
    """

    def __init__(self, positions: np.ndarray, shards: np.ndarray, key: str, streams: int):
        self.positions, self.shards, self.key, self.streams = positions, shards, key, streams
        self._orders: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        return len(self.positions)

    def at(self, stream: int, drawn: int) -> int:
        """The position that a stream draws as its `drawn`-th of this group."""
        turn, place = divmod(drawn * self.streams + stream, len(self.positions))
        return int(self._order(turn)[place])

    def _order(self, turn: int) -> np.ndarray:
        if turn not in self._orders:
            if len(self._orders) == ORDERS:
                self._orders.pop(min(self._orders))
            self._orders[turn] = self.positions[_shuffled(self.shards, f"{self.key}/{turn}")]
        return self._orders[turn]


def _shuffled(shards: np.ndarray, key: str) -> np.ndarray:
    rng = np.random.default_rng(int.from_bytes(hashlib.sha256(key.encode()).digest()[:16], "big"))
    present, which = np.unique(shards, return_inverse=True)
    window = rng.permutation(len(present)) // SHARDS_AT_ONCE
    return np.lexsort((rng.random(len(shards)), window[which]))
