"""The understanding eye: a SigLIP vision transformer over packed patches of any number of images."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from model.config import ViTConfig
from model.preprocess import scaled


def patchify(image: Tensor, patch: int, out: Tensor | None = None) -> Tensor:
    """(C, H, W) -> [H/p * W/p, p*p*C] with inner order (row, column, channel), written into `out` if it is given."""
    channels, height, width = image.shape
    if image.stride(0) != 1:
        # Channels side by side first: a patch's rows are then copied whole.
        image = torch.stack(image.unbind(), dim=-1).permute(2, 0, 1)
    patches = image.reshape(channels, height // patch, patch, width // patch, patch).permute(1, 3, 2, 4, 0)
    if out is None:
        out = image.new_empty(height * width // patch**2, patch * patch * channels)
    out.view(patches.shape).copy_(patches)
    return out


class _Attention(nn.Module):
    def __init__(self, config: ViTConfig):
        super().__init__()
        width = config.hidden_size
        self.heads = config.num_attention_heads
        self.q_proj, self.k_proj = nn.Linear(width, width), nn.Linear(width, width)
        self.v_proj, self.out_proj = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x: Tensor, lengths: list[int]) -> Tensor:
        q, k, v = (proj(x).unflatten(-1, (self.heads, -1)) for proj in (self.q_proj, self.k_proj, self.v_proj))
        return self.out_proj(_attend_within_images(q, k, v, lengths).flatten(1))


def _attend_within_images(q: Tensor, k: Tensor, v: Tensor, lengths: list[int]) -> Tensor:
    """Full attention inside each image only; q, k, v are [n, heads, d]. Equal sizes run as one batch."""
    if len(set(lengths)) == 1:
        q, k, v = (x.unflatten(0, (len(lengths), lengths[0])).transpose(1, 2) for x in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(0, 1)
    pieces = zip(*(x.transpose(0, 1).split(lengths, dim=1) for x in (q, k, v)))
    return torch.cat([F.scaled_dot_product_attention(a[None], b[None], c[None])[0] for a, b, c in pieces], dim=1).transpose(0, 1)


class _MLP(nn.Module):
    def __init__(self, config: ViTConfig):
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class _Layer(nn.Module):
    def __init__(self, config: ViTConfig):
        super().__init__()
        self.self_attn, self.mlp = _Attention(config), _MLP(config)
        self.layer_norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.layer_norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, x: Tensor, lengths: list[int]) -> Tensor:
        x = x + self.self_attn(self.layer_norm1(x), lengths)
        return x + self.mlp(self.layer_norm2(x))


class _Embeddings(nn.Module):
    def __init__(self, config: ViTConfig):
        super().__init__()
        self.patch_embedding = nn.Linear(config.num_channels * config.patch_size**2, config.hidden_size)
        self.position_embedding = nn.Embedding((config.image_size // config.patch_size) ** 2, config.hidden_size)

    def forward(self, patches: Tensor, position_ids: Tensor) -> Tensor:
        return self.patch_embedding(scaled(patches).to(self.patch_embedding.weight.dtype)) + self.position_embedding(position_ids)


class _Encoder(nn.Module):
    def __init__(self, config: ViTConfig):
        super().__init__()
        self.layers = nn.ModuleList(_Layer(config) for _ in range(config.layers_used))
        self.checkpointing = False

    def forward(self, x: Tensor, lengths: list[int]) -> Tensor:
        for layer in self.layers:
            x = checkpoint(layer, x, lengths, use_reentrant=False) if self.checkpointing and self.training else layer(x, lengths)
        return x


class _VisionTransformer(nn.Module):
    def __init__(self, config: ViTConfig):
        super().__init__()
        self.embeddings, self.encoder = _Embeddings(config), _Encoder(config)
        self.post_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, patches: Tensor, position_ids: Tensor, lengths: list[int]) -> Tensor:
        return self.post_layernorm(self.encoder(self.embeddings(patches, position_ids), lengths))


class VisionModel(nn.Module):
    """Patches [n, p*p*3], in 8 bits or in [-1, 1], of several images, `lengths` patches each, to features [n, hidden]."""

    def __init__(self, config: ViTConfig):
        super().__init__()
        self.vision_model = _VisionTransformer(config)

    def forward(self, patches: Tensor, position_ids: Tensor, lengths: list[int]) -> Tensor:
        return self.vision_model(patches, position_ids, lengths)


class Connector(nn.Module):
    """ViT features [n, vit hidden] to decoder inputs [n, llm hidden]."""

    def __init__(self, vit_width: int, llm_width: int):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(vit_width, llm_width), nn.Linear(llm_width, llm_width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))
