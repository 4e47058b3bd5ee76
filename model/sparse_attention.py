"""The same attention rule for GPUs: block-sparse over the whole pack (flex attention), so that no dense mask is ever made.

Blocks of 128 by 128 tokens that no token may look across are skipped. Tokens are attended to in sequence order, whatever
order they come in: a sample's tokens then lie in few blocks, where texts of all samples side by side would see all of them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from model.attention_rules import AttentionRules
from model.fused import compiled

DEVICES = ("cuda",)
SIDE = 128


@dataclass(frozen=True)
class SparseLayout:
    """Who sees whom in the sequence, each token's index in it [N], and of each index the token [N]."""

    mask: BlockMask
    indexes: Tensor
    places: Tensor


def block_mask(sample_lens: Sequence[int], split_lens: Sequence[int], attn_modes: Sequence[str], device: torch.device | str) -> BlockMask:
    """The mask of a packed sequence of N tokens."""
    rules, lengths = AttentionRules(split_lens, attn_modes), torch.tensor(sample_lens)
    start = torch.repeat_interleave(lengths.cumsum(0) - lengths, lengths)
    start, split, two_way, noise = (x.to(device, non_blocking=True) for x in (start, rules.split, rules.two_way, rules.noise))
    index = torch.arange(len(start), device=device)
    # The rule in three comparisons of small numbers, since the kernel asks for every pair: tokens of one two-way split have
    # a number in common, others one of their own; a noised token has no place to be looked back at.
    first, common = start.int(), torch.where(two_way, split, ~index).int()
    behind = index.int().masked_fill(noise, torch.iinfo(torch.int32).max)

    def allowed(batch: Tensor, head: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return (common[q] == common[k]) | ((behind[k] <= q) & (behind[k] >= first[q]))

    seen, whole = block_pairs(index, start, split, two_way, noise)
    partly = seen & ~whole
    return BlockMask.from_kv_blocks(*_listed(partly), *_listed(whole), BLOCK_SIZE=SIDE, mask_mod=allowed, seq_lengths=(len(index), len(index)))


def block_pairs(index: Tensor, start: Tensor, split: Tensor, two_way: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Bool [blocks, blocks] each: pairs (q, k) where some token may see another, and where all see all.

    Told from the least and greatest values in each block alone (`start`, a sample's first index, names the sample), so the
    cost is that of the pairs of blocks. The first may hold a few pairs too many, the second a few too few: tokens are then
    looked at one by one.
    """
    (first, last), (low, high), (begin, end) = (_bounds(x) for x in (index, start, split))
    met = _overlap(low, high)
    same = _overlap(begin, end) & _any(two_way)[:, None]
    seen = met & ((last[:, None] >= first[None]) | same) & (_overlap(begin, end) | ~_all(noise)[None])
    one_sample = (low == high)[:, None] & (low == high)[None] & met
    one_split = (begin == end)[:, None] & (begin == end)[None] & _overlap(begin, end) & _all(two_way)[:, None]
    whole = one_split | (one_sample & (first[:, None] >= last[None]) & ~_any(noise)[None])
    full = torch.arange(1, len(first) + 1, device=index.device) * SIDE <= len(index)
    return seen, whole & full[:, None] & full[None]


def _tiles(x: Tensor) -> Tensor:
    """[blocks, SIDE]; the last block is filled up with its last value."""
    missing = -len(x) % SIDE
    return torch.cat([x, x[-1:].expand(missing)]).view(-1, SIDE)


def _bounds(x: Tensor) -> tuple[Tensor, Tensor]:
    return _tiles(x).aminmax(dim=1)


def _any(x: Tensor) -> Tensor:
    return _tiles(x).any(dim=1)


def _all(x: Tensor) -> Tensor:
    return _tiles(x).all(dim=1)


def _overlap(low: Tensor, high: Tensor) -> Tensor:
    """[n, n]: whether the ranges of two blocks meet."""
    return (high[:, None] >= low[None]) & (high[None] >= low[:, None])


def _listed(pairs: Tensor) -> tuple[Tensor, Tensor]:
    """Of each row, how many blocks it looks at, and their numbers first: int32 [1, 1, blocks] and [1, 1, blocks, blocks]."""
    counts, numbers = pairs.sum(dim=-1), pairs.int().argsort(dim=-1, descending=True, stable=True)
    return counts.int()[None, None], numbers.int()[None, None]


def attend(q: Tensor, k: Tensor, v: Tensor, layout: SparseLayout) -> Tensor:
    """Grouped-query attention of packed q [N, heads, d] and k, v [N, kv_heads, d]; returns [N, heads * d]."""
    q, k, v = (_Permuted.apply(x, layout.places, layout.indexes).transpose(0, 1)[None] for x in (q, k, v))
    attended = _kernel(q.device.type)(q, k, v, block_mask=layout.mask, enable_gqa=True)[0].transpose(0, 1).flatten(1)
    return _Permuted.apply(attended, layout.indexes, layout.places)


class _Permuted(torch.autograd.Function):
    """x[order] of a permutation and its inverse; backwards too a mere reading, where that of an index adds up."""

    @staticmethod
    def forward(ctx, x: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
        ctx.save_for_backward(inverse)
        return x.index_select(0, order)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None]:
        (inverse,) = ctx.saved_tensors
        return grad.index_select(0, inverse), None, None


def _kernel(device: str) -> Callable:
    """Compiled where it runs fused; elsewhere as it is, which is slow but gives the same numbers."""
    return compiled(flex_attention) if device in DEVICES else flex_attention
