"""The attention product over a packed sequence.

A packed sequence is attended to as a few dense blocks, each of samples of similar length: no mask ever
spans the whole pack, and little is computed for padding.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor

from model.attention_rules import AttentionRules


@dataclass(frozen=True)
class Block:
    """`rows` samples padded to `width` tokens. `mask` is added to the scores, [rows, 1, width, keys]; None: causal."""

    rows: int
    width: int
    mask: Tensor | None

    @property
    def places(self) -> int:
        return self.rows * self.width


@dataclass(frozen=True)
class Layout:
    """How N tokens lie in blocks, and which expert they belong to.

    `slots` [N] are places in all blocks laid end to end, None where the tokens already lie so.
    `n_und` tokens belong to the understanding expert and come first, the rest to the generation expert.
    With `freeze_und` no gradient passes through anything the understanding expert computed. With `both_experts` the
    generation expert runs even where it has no token. Where `sparse` is given, attention is block-sparse over all
    tokens (`sparse_attention.py`), and there are no blocks.
    """

    blocks: Sequence[Block]
    slots: Tensor | None
    n_und: int
    freeze_und: bool = False
    both_experts: bool = False
    sparse: object | None = None


def sample_mask(sample_lens: Sequence[int], split_lens: Sequence[int], attn_modes: Sequence[str]) -> Tensor:
    """Bool [samples, width, width]: what each token of each sample may see."""
    tokens, places, width = _place(range(len(sample_lens)), sample_lens)
    return AttentionRules(split_lens, attn_modes).dense(tokens, places, len(sample_lens), width)


def lay_out(sample_lens: Sequence[int], split_lens: Sequence[int], attn_modes: Sequence[str], like: Tensor, in_one: bool) -> tuple[list[Block], Tensor]:
    """The blocks of a packed sequence, and each token's place [N] in them, in sequence order.

    Samples of similar length share a block; with `in_one` all do, a row each in their order, as a cache holds them.
    `like` gives the masks' dtype and device; places are on the host.
    """
    rules = AttentionRules(split_lens, attn_modes)
    slots = torch.empty(sum(sample_lens), dtype=torch.long)
    blocks: list[Block] = []
    base = 0
    for members in [range(len(sample_lens))] if in_one else similar_lengths(sample_lens):
        tokens, places, width = _place(members, sample_lens)
        slots[tokens] = base + places
        causal = not rules.two_way[tokens].any()
        mask = None if causal else additive(rules.dense(tokens, places, len(members), width)[:, None], like)
        blocks.append(Block(len(members), width, mask))
        base += blocks[-1].places
    return blocks, slots


def similar_lengths(lengths: Sequence[int]) -> list[list[int]]:
    """Indices grouped so that padding each to the longest of its group adds a quarter at most, or 16 tokens."""
    groups: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        longest = lengths[groups[-1][0]] if groups else 0
        if groups and longest - lengths[index] <= max(16, longest // 5):
            groups[-1].append(index)
        else:
            groups.append([index])
    return groups


def _place(members: Sequence[int], sample_lens: Sequence[int]) -> tuple[Tensor, Tensor, int]:
    """Of some samples: their tokens [n] in the sequence, the places [n] of these in a block, and its width."""
    ends = list(accumulate(sample_lens))
    width = max(sample_lens[m] for m in members)
    tokens = torch.cat([torch.arange(ends[m] - sample_lens[m], ends[m]) for m in members])
    places = torch.cat([torch.arange(sample_lens[m]) + row * width for row, m in enumerate(members)])
    return tokens, places, width


def additive(mask: Tensor, like: Tensor) -> Tensor:
    """A bool mask, True = may look, as scores to add."""
    return torch.zeros(mask.shape, dtype=like.dtype, device=like.device).masked_fill_(~mask.to(like.device), float("-inf"))


class KVCache:
    """Keys and values of every layer, [rows, kv_heads, capacity, head_dim], written in place."""

    def __init__(self, layers: int, rows: int, kv_heads: int, capacity: int, head_dim: int, like: Tensor):
        shape = (rows, kv_heads, capacity, head_dim)
        self.capacity = capacity
        self.keys = [like.new_zeros(shape) for _ in range(layers)]
        self.values = [like.new_zeros(shape) for _ in range(layers)]

    def write(self, layer: int, start: int, k: Tensor, v: Tensor) -> list[Tensor]:
        """Store k, v [rows, kv_heads, width, d] from column `start` on; returns views of everything up to their end."""
        width = k.shape[2]
        held = []
        for cache, new in ((self.keys[layer], k), (self.values[layer], v)):
            cache = cache.narrow(0, 0, len(new))
            cache.narrow(2, start, width).copy_(new)
            held.append(cache.narrow(2, 0, start + width))
        return held


def attend(q: Tensor, k: Tensor, v: Tensor, layout: Layout, cache: KVCache | None = None, layer: int = 0, start: int = 0) -> Tensor:
    """Grouped-query attention of packed q [N, heads, d] and k, v [N, kv_heads, d]; returns [N, heads * d].

    With a cache, k and v are stored from column `start` on and everything before is attended to as well.
    """
    if layout.sparse is not None:
        from model import sparse_attention

        return sparse_attention.attend(q, k, v, layout.sparse)
    if cache is not None and layout.slots is None and layout.blocks[0].width == 1:
        return _attend_one_a_row(q, *cache.write(layer, start, k.unsqueeze(2), v.unsqueeze(2)), layout.blocks[0].mask)
    out = []
    for block, q, k, v in zip(layout.blocks, *(_spread(x, layout) for x in (q, k, v))):
        if cache is not None:
            k, v = cache.write(layer, start, k, v)
        causal = block.mask is None
        out.append(F.scaled_dot_product_attention(q, k, v, attn_mask=block.mask, is_causal=causal, enable_gqa=True).transpose(1, 2).flatten(0, 1))
    flat = out[0] if len(out) == 1 else torch.cat(out)
    return (flat if layout.slots is None else flat.index_select(0, layout.slots)).flatten(1)


def remember(k: Tensor, v: Tensor, layout: Layout, cache: KVCache, layer: int, start: int) -> None:
    """Store packed k, v [N, kv_heads, d] of a layout in one block, as `attend` does, and attend to nothing."""
    (k,), (v,) = (_spread(x, layout) for x in (k, v))
    cache.write(layer, start, k, v)


def _attend_one_a_row(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """One query a row, q [rows, heads, d]: heads that share keys are as many queries of one head, so keys are read once."""
    shared = q.view(len(q), k.shape[1], -1, q.shape[-1])
    if not q.is_cpu:
        return F.scaled_dot_product_attention(shared, k, v, attn_mask=mask).flatten(1)
    # On a host the blocks of the joined kernel cost more than so few scores do.
    scores = torch.matmul(shared * q.shape[-1] ** -0.5, k.mT)
    if mask is not None:
        scores += mask
    return torch.matmul(scores.softmax(dim=-1), v).flatten(1)


def _spread(x: Tensor, layout: Layout) -> list[Tensor]:
    """Packed x [N, heads, d] as one [rows, heads, width, d] a block."""
    sizes = [block.places for block in layout.blocks]
    if layout.slots is not None:
        # Where there is padding it must be numbers: masked scores of what was in memory may still be none.
        blank = x.new_empty if len(x) == sum(sizes) else x.new_zeros
        x = blank(sum(sizes), *x.shape[1:]).index_copy_(0, layout.slots, x)
    parts = [x] if len(sizes) == 1 else x.split(sizes)
    return [part.view(b.rows, b.width, *x.shape[1:]).transpose(1, 2) for b, part in zip(layout.blocks, parts)]
