"""The same attention rule for GPUs: block-sparse over the whole pack (flex attention), so that no dense mask is ever made.

Blocks of 128 by 128 tokens that no token may look across are skipped. Tokens stay in expert order.
"""

from collections.abc import Callable, Sequence
from functools import cache

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from model.attention import AttentionRules

DEVICES = ("cuda",)


def block_mask(sample_lens: Sequence[int], split_lens: Sequence[int], attn_modes: Sequence[str], order: Tensor) -> BlockMask:
    """The mask of a packed sequence whose tokens come in `order` [N] (indices into the sequence)."""
    device = order.device
    rules = AttentionRules(split_lens, attn_modes, device)
    sample = torch.repeat_interleave(torch.arange(len(sample_lens), device=device), torch.tensor(sample_lens, device=device))[order]
    split, two_way, noise = rules.split[order], rules.two_way[order], rules.noise[order]

    def allowed(batch: Tensor, head: Tensor, q: Tensor, k: Tensor) -> Tensor:
        same = split[q] == split[k]
        return (sample[q] == sample[k]) & ((order[q] >= order[k]) | (same & two_way[q])) & (same | ~noise[k])

    return create_block_mask(allowed, None, None, len(order), len(order), device=device)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: BlockMask) -> Tensor:
    """Grouped-query attention of packed q [N, heads, d] and k, v [N, kv_heads, d]; returns [N, heads * d]."""
    q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))
    return _kernel(q.device.type)(q, k, v, block_mask=mask, enable_gqa=True)[0].transpose(0, 1).flatten(1)


@cache
def _kernel(device: str) -> Callable:
    """Compiled where it runs fused; elsewhere as it is, which is slow but gives the same numbers."""
    return torch.compile(flex_attention, dynamic=True) if device in DEVICES else flex_attention
