"""Text decoding with a key/value cache, for a batch of contexts of any lengths."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from model.attention import Block, KVCache, Layout, additive
from model.packing import Item, pack

if TYPE_CHECKING:
    from model.unimedvl import UniMedVL


@dataclass
class Context:
    """What a batch of rows has read so far: cache, tokens a row [rows], rotary counter a row [rows].

    What comes next is written behind the longest context, at column `end`, for every row alike; `mask`
    [rows, 1, 1, capacity] hides the gap between a shorter context and that.
    """

    cache: KVCache
    lengths: Tensor
    ropes: Tensor
    end: int
    mask: Tensor

    @property
    def rows(self) -> int:
        return len(self.lengths)


@torch.inference_mode()
def prefill(model: "UniMedVL", contexts: list[list[Item]], room: int) -> Context:
    """Read the contexts in one forward pass and leave `room` free places a row in the cache."""
    packed = pack(contexts, model.config).to(model.device)
    llm = model.config.llm
    like = model.language_model.lm_head.weight
    width = max(packed.sample_lens)
    cache = KVCache(llm.num_hidden_layers, len(contexts), llm.num_key_value_heads, width + room, llm.head_dim, like)
    if width:
        model.read(packed, cache)
    lengths = torch.tensor(packed.sample_lens, device=like.device)
    columns = torch.arange(cache.capacity, device=like.device)
    seen = (columns < lengths[:, None]) | (columns >= width)
    return Context(cache, lengths, torch.tensor(packed.rope_ends, device=like.device), width, additive(seen[:, None, None], like))


@torch.inference_mode()
def decode(model: "UniMedVL", context: Context, max_new_tokens: int, temperature: float, seed: int) -> Iterator[tuple[list[int], list[float]]]:
    """Yield (tokens, log-probabilities) of all rows, step by step, beginning after a fresh bos.

    Rows go on after their eos: the caller decides when to stop.
    """
    generators = [torch.Generator().manual_seed(seed) for _ in range(context.rows)] if temperature else []
    tokens = torch.full((context.rows,), model.config.special_tokens.bos_token_id, device=model.device)
    for _ in range(max_new_tokens):
        logits, context = step(model, context, tokens)
        logprobs = torch.log_softmax(logits.float() / temperature if temperature else logits.float(), dim=-1)
        if temperature:
            # Drawn on the host, each row by its own generator: a seed means the same on every device and in every batch.
            tokens = torch.cat([torch.multinomial(row, 1, generator=rng) for row, rng in zip(logprobs.exp().cpu(), generators)]).to(model.device)
            scores = logprobs.gather(1, tokens[:, None])[:, 0]
        else:
            scores, tokens = logprobs.max(dim=-1)
        yield tokens.tolist(), scores.tolist()


@torch.inference_mode()
def step(model: "UniMedVL", context: Context, tokens: Tensor) -> tuple[Tensor, Context]:
    """Read one token a row [rows]; returns the logits [rows, vocab] of what follows, and the longer context."""
    end = context.end + 1
    layout = Layout([Block(context.rows, 1, context.mask[..., :end])], None, context.rows)
    hidden = model.language_model(model.embed_text(tokens), context.ropes, layout, context.cache, context.end)
    return model.language_model.lm_head(hidden), replace(context, lengths=context.lengths + 1, ropes=context.ropes + 1, end=end)
