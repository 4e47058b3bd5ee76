"""Who may look at whom."""

from collections.abc import Sequence

import torch
from torch import Tensor


class AttentionRules:
    """The published rule over the splits of a packed sequence of N tokens.

    allowed(q, k) = (q >= k or both in the same full/noise split) and not (k in a noise split q is outside of),
    within a sample. Worked out on the host, where the lengths are, so that no GPU has to be waited for.
    """

    def __init__(self, split_lens: Sequence[int], attn_modes: Sequence[str]):
        repeats = torch.tensor(split_lens, dtype=torch.long)
        self.split = torch.repeat_interleave(torch.arange(len(split_lens)), repeats)
        self.two_way = torch.repeat_interleave(torch.tensor([m != "causal" for m in attn_modes], dtype=torch.bool), repeats)
        self.noise = torch.repeat_interleave(torch.tensor([m == "noise" for m in attn_modes], dtype=torch.bool), repeats)

    def dense(self, tokens: Tensor, places: Tensor, rows: int, width: int) -> Tensor:
        """Bool [rows, width, width] of the samples whose `tokens` [n] of the sequence lie at `places` [n]. Padding sees itself alone."""
        split, two_way, noise = (_lay(x[tokens], places, rows, width) for x in (self.split + 1, self.two_way, self.noise))
        same = split[:, :, None] == split[:, None, :]
        earlier = torch.ones(width, width, dtype=torch.bool).tril()
        allowed = (earlier | (same & two_way[:, :, None])) & (same | ~noise[:, None, :])
        padding = split == 0
        return (allowed & ~padding[:, None, :]) | (padding[:, :, None] & torch.eye(width, dtype=torch.bool))


def _lay(x: Tensor, places: Tensor, rows: int, width: int) -> Tensor:
    return x.new_zeros(rows * width).index_copy(0, places, x).view(rows, width)
