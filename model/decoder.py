"""The mixture-of-transformers decoder: Qwen2 layers with two experts, routed by token type.

Text and ViT tokens use the understanding weights, latent tokens the generation weights (`*_moe_gen`).
Tokens are ordered by expert throughout (understanding first), so routing is a split, never a gather.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from model.attention import KVCache, Layout, attend, remember
from model.config import LLMConfig
from model.gate import gated
from model.norm import RMSNorm, normed_and_turned
from model.positions import rotary
from model.products import Linear, Together


# cos and sin (`rotary`) of each expert's tokens.
Angles = Sequence[tuple[Tensor, Tensor]]


def by_expert(x: Tensor, layout: Layout, und: Callable, gen: Callable):
    """`und` of the first `n_und` tokens and `gen` of the others, in one tensor again; or in several, if they give several."""
    if layout.n_und == x.shape[0] and not layout.both_experts:
        return _held(und(x), layout)
    first, second = x.split([layout.n_und, x.shape[0] - layout.n_und])
    understood, generated = _held(und(first), layout), gen(second)
    if isinstance(generated, Tensor):
        return torch.cat([understood, generated])
    return [torch.cat(pair) for pair in zip(understood, generated)]


def _held(found, layout: Layout):
    """Results of the understanding expert, cut from their past where it is frozen."""
    if not layout.freeze_und:
        return found
    return found.detach() if isinstance(found, Tensor) else [x.detach() for x in found]


class _Attention(nn.Module):
    def __init__(self, config: LLMConfig):
        super().__init__()
        width, d = config.hidden_size, config.head_dim
        self.d, self.heads, self.kv_heads = d, config.num_attention_heads, config.num_key_value_heads
        for suffix in ("", "_moe_gen"):
            self.add_module(f"q_proj{suffix}", nn.Linear(width, config.num_attention_heads * d))
            self.add_module(f"k_proj{suffix}", nn.Linear(width, config.num_key_value_heads * d))
            self.add_module(f"v_proj{suffix}", nn.Linear(width, config.num_key_value_heads * d))
            self.add_module(f"o_proj{suffix}", nn.Linear(config.num_attention_heads * d, width, bias=False))
            self.add_module(f"q_norm{suffix}", RMSNorm(d, config.rms_norm_eps))
            self.add_module(f"k_norm{suffix}", RMSNorm(d, config.rms_norm_eps))
        self.qkv, self.qkv_moe_gen = (Together(*(self._modules[name + suffix] for name in ("q_proj", "k_proj", "v_proj"))) for suffix in ("", "_moe_gen"))

    def forward(self, x: Tensor, angles: Angles, layout: Layout, only_keys: bool, **cache) -> Tensor | None:
        """The result [n, hidden]; nothing with `only_keys`, which fills the cache and does no more."""
        und, gen = angles
        qk, v = by_expert(
            x,
            layout,
            lambda x: self._heads(self.qkv(x), self.q_norm, self.k_norm, und),
            lambda x: self._heads(self.qkv_moe_gen(x), self.q_norm_moe_gen, self.k_norm_moe_gen, gen),
        )
        q, k = qk.split_with_sizes([self.heads, self.kv_heads], dim=1)
        if only_keys:
            return remember(k, v, layout, **cache)
        return by_expert(attend(q, k, v, layout, **cache), layout, self.o_proj, self.o_proj_moe_gen)

    def _heads(self, qkv: Tensor, q_norm: RMSNorm, k_norm: RMSNorm, angles: Sequence[Tensor]) -> Sequence[Tensor]:
        """Queries and keys [n, heads + kv_heads, d], normed and turned, and values [n, kv_heads, d]."""
        qk, v = qkv.view(len(qkv), self.heads + 2 * self.kv_heads, self.d).split_with_sizes([self.heads + self.kv_heads, self.kv_heads], dim=1)
        weight = torch.cat([q_norm.weight.expand(self.heads, -1), k_norm.weight.expand(self.kv_heads, -1)])
        if angles[0].dtype is not qk.dtype:
            angles = [angle.to(qk.dtype) for angle in angles]
        return normed_and_turned(qk, weight, q_norm.eps, *angles), v


class _MLP(nn.Module):
    def __init__(self, config: LLMConfig):
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = Linear(config.intermediate_size, config.hidden_size, bias=False)
        self.gate_up = Together(self.gate_proj, self.up_proj)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(gated(self.gate_up(x)))


class _Layer(nn.Module):
    def __init__(self, config: LLMConfig):
        super().__init__()
        self.self_attn = _Attention(config)
        for suffix in ("", "_moe_gen"):
            self.add_module(f"mlp{suffix}", _MLP(config))
            self.add_module(f"input_layernorm{suffix}", RMSNorm(config.hidden_size, config.rms_norm_eps))
            self.add_module(f"post_attention_layernorm{suffix}", RMSNorm(config.hidden_size, config.rms_norm_eps))

    def forward(self, x: Tensor, angles: Angles, layout: Layout, only_keys: bool = False, **cache) -> Tensor:
        attended = self.self_attn(by_expert(x, layout, self.input_layernorm, self.input_layernorm_moe_gen), angles, layout, only_keys, **cache)
        if only_keys:
            return x
        x = x + attended
        h = by_expert(x, layout, self.post_attention_layernorm, self.post_attention_layernorm_moe_gen)
        return x + by_expert(h, layout, self.mlp, self.mlp_moe_gen)


class _Decoder(nn.Module):
    def __init__(self, config: LLMConfig):
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(_Layer(config) for _ in range(config.num_hidden_layers))
        self.checkpointing = False
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.norm_moe_gen = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, x: Tensor, position_ids: Tensor, layout: Layout, cache: KVCache | None = None, start: int = 0, only_keys: bool = False) -> Tensor:
        tables = rotary(position_ids, self.config.head_dim, self.config.rope_theta, x.dtype)
        angles = tuple(zip(*(table.tensor_split([layout.n_und]) for table in tables)))
        for index, layer in enumerate(self.layers):
            if self.checkpointing and self.training:
                x = checkpoint(layer, x, angles, layout, use_reentrant=False)
            else:
                # Nobody reads what the last layer makes of its keys.
                x = layer(x, angles, layout, only_keys and layer is self.layers[-1], cache=cache, layer=index, start=start)
        return by_expert(x, layout, self.norm, self.norm_moe_gen)


class LanguageModel(nn.Module):
    """Hidden states [N, hidden] in expert order through all layers; `lm_head` turns them into logits.

    With `only_keys` the cache is filled and the states are of no use.
    """

    def __init__(self, config: LLMConfig):
        super().__init__()
        self.model = _Decoder(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    def forward(self, x: Tensor, position_ids: Tensor, layout: Layout, cache: KVCache | None = None, start: int = 0, only_keys: bool = False) -> Tensor:
        return self.model(x, position_ids, layout, cache, start, only_keys)

    def train(self, mode: bool = True) -> "LanguageModel":
        """As `nn.Module.train`; weights of products with one input are laid side by side, wherever they have come from."""
        for module in self.modules():
            for products in vars(module).values():
                if isinstance(products, Together):
                    products.lay_side_by_side()
        return super().train(mode)

    def copy_understanding_to_generation(self) -> None:
        """Start every generation expert as its understanding twin (BAGEL's `copy_init_moe`)."""
        state = self.state_dict()
        with torch.no_grad():
            for key, tensor in state.items():
                if "_moe_gen" in key:
                    tensor.copy_(state[key.replace("_moe_gen", "")])
