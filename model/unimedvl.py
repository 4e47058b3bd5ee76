"""UniMedVL: eye, canvas and two-expert decoder as one module, with the training forward pass."""

from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.attention import KVCache, Layout, lay_out
from model.config import ModelConfig
from model.decoder import LanguageModel
from model.inference import InferenceMixin
from model.packing import PackedSequence
from model.positions import sincos_table, timestep_sinusoid
from model.vae import AutoEncoder
from model.vit import Connector, VisionModel


class _TimeEmbedder(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(256, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, t: Tensor) -> Tensor:
        return self.mlp(timestep_sinusoid(t).to(self.mlp[0].weight.dtype))


class _PositionTable(nn.Module):
    def __init__(self, side: int, width: int):
        super().__init__()
        empty = torch.empty(side * side, width)
        self.pos_embed = nn.Parameter(empty if empty.is_meta else sincos_table(side, width), requires_grad=False)

    def forward(self, ids: Tensor) -> Tensor:
        return self.pos_embed[ids]


class TokenLosses(NamedTuple):
    """Unreduced losses of a pack: `ce` [n] per text token, `mse` [m, latent_dim] per latent element."""

    ce: Tensor
    mse: Tensor


class UniMedVL(InferenceMixin, nn.Module):
    """The whole network. The VAE is frozen and kept beside the trained parts, as in the publication."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        width = config.llm.hidden_size
        self.language_model = LanguageModel(config.llm)
        self.vit_model = VisionModel(config.vit)
        self.connector = Connector(config.vit.hidden_size, width)
        self.vit_pos_embed = _PositionTable(config.vit_max_num_patch_per_side, width)
        self.time_embedder = _TimeEmbedder(width)
        self.vae2llm, self.llm2vae = nn.Linear(config.latent_dim, width), nn.Linear(width, config.latent_dim)
        self.latent_pos_embed = _PositionTable(config.max_latent_size, width)
        self.vae = AutoEncoder(config.vae).requires_grad_(False)
        self.tokenizer = None
        self.runs_every_part = False  # also parts that a pack has no token for, and steps after an answer's end: `parallelize.shard` needs it

    @classmethod
    def from_pretrained(cls, folder: str | Path, device: str = "cpu") -> "UniMedVL":
        """Load a checkpoint folder in the published layout, ready for inference.

        On the `meta` device nothing is read but the files' headers: keys and shapes are checked at no cost.

        Raises:
            CheckpointError: a file is missing or damaged, a tensor is missing, unexpected, misshapen or not of finite
                floating-point numbers, or configuration and tokenizer do not fit.
        """
        from model.checkpoint import load_checkpoint

        return load_checkpoint(Path(folder), device)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the published layout: JSON configs, `ema.safetensors`, `ae.safetensors`, tokenizer."""
        from model.checkpoint import save_checkpoint

        save_checkpoint(self, Path(folder))

    def initialise(self, generator: torch.Generator) -> None:
        """Random start from an explicit seed; the generation expert starts as the understanding one."""
        with torch.no_grad():
            for module in (m for part in self.trained_parts() for m in part.modules()):
                if isinstance(module, nn.Linear):
                    nn.init.normal_(module.weight, std=module.in_features**-0.5, generator=generator)
                    if module.bias is not None:
                        module.bias.zero_()
                elif isinstance(module, nn.Embedding):
                    nn.init.normal_(module.weight, std=self.config.llm.initializer_range, generator=generator)
            self.llm2vae.weight.zero_()
        self.language_model.copy_understanding_to_generation()

    def trained_parts(self) -> tuple[nn.Module, ...]:
        """Everything but the VAE."""
        return tuple(child for name, child in self.named_children() if name != "vae")

    def forward(self, pack: PackedSequence, noise: Tensor, freeze_und: bool = False) -> TokenLosses:
        """Token losses of a pack on the network's device. `noise` [M, latent_dim] ~ N(0, 1) pairs with `pack.latents`.

        With `freeze_und` only the generation expert, its in- and output layers and `lm_head` get gradients.
        """
        t = self.shifted_timesteps(pack.timestep_draws)
        noisy = (1 - t[:, None]) * pack.latents + t[:, None] * noise
        hidden, place = self.hidden_states(pack, noisy, t, freeze_und=freeze_und)
        logits = self.language_model.lm_head(hidden[place[pack.ce_indexes]])
        ce = F.cross_entropy(logits.float(), pack.ce_labels, reduction="none")
        velocity = self.llm2vae(hidden[place[pack.latent_indexes[pack.target_rows]]])
        return TokenLosses(ce=ce, mse=(velocity.float() - (noise - pack.latents)[pack.target_rows]) ** 2)

    def shifted_timesteps(self, draws: Tensor) -> Tensor:
        """Normal draws to t in [0, 1): sigmoid, then the resolution shift."""
        t, shift = torch.sigmoid(draws), self.config.timestep_shift
        return shift * t / (1 + (shift - 1) * t)

    def hidden_states(self, pack: PackedSequence, latents: Tensor, t: Tensor, freeze_und: bool = False) -> tuple[Tensor, Tensor]:
        """Last hidden states [N, hidden] in expert order, and `place` [N]: sequence index -> row of them."""
        order = _expert_order(pack)
        place = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
        layout = self._layout(pack, order, place, freeze_und)
        return self.language_model(self._embedded(pack, latents, t), pack.position_ids[order], layout), place

    def read(self, pack: PackedSequence, cache: KVCache) -> None:
        """Fill a cache with the keys and values of a pack of contexts, one a row."""
        order, t = _expert_order(pack), self.shifted_timesteps(pack.timestep_draws)
        layout = self._layout(pack, order)
        self.language_model(self._embedded(pack, pack.latents, t), pack.position_ids[order], layout, cache, only_keys=True)

    def _embedded(self, pack: PackedSequence, latents: Tensor, t: Tensor) -> Tensor:
        """All tokens as decoder inputs [N, hidden] in expert order."""
        return torch.cat([self.embed_text(pack.text_ids), self.embed_vit(pack), self.embed_latents(latents, t, pack.latent_position_ids)])

    def _layout(self, pack: PackedSequence, order: Tensor, place: Tensor | None = None, freeze_und: bool = False) -> Layout:
        """How tokens in expert order lie; `place` is the inverse of `order`, None where a cache holds them."""
        like, n_und = self.language_model.lm_head.weight, len(pack.text_indexes) + len(pack.vit_indexes)
        rule = pack.sample_lens, pack.split_lens, pack.attn_modes
        if self.sparse_attention and place is not None:
            from model.sparse_attention import SparseLayout, block_mask

            return Layout((), None, n_und, freeze_und, self.runs_every_part, SparseLayout(block_mask(*rule, order.device), order, place))
        blocks, slots = lay_out(*rule, like, in_one=place is None)
        text_alone = len(pack.text_indexes) == len(slots) == sum(block.places for block in blocks)
        in_place = text_alone and torch.equal(slots, torch.arange(len(slots)))
        return Layout(blocks, None if in_place else slots.to(like.device)[order], n_und, freeze_und, self.runs_every_part)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.language_model.lm_head.weight.device

    @property
    def sparse_attention(self) -> bool:
        """Whether packs are attended to block-sparsely: on GPUs, where that is the faster way."""
        return self.device.type == "cuda"

    def embed_text(self, ids: Tensor) -> Tensor:
        return self.language_model.model.embed_tokens(ids)

    def embed_vit(self, pack: PackedSequence) -> Tensor:
        """ViT tokens as decoder inputs [n, hidden]."""
        patches, ids, lengths = pack.vit_patches, pack.vit_position_ids, pack.vit_lengths
        if not lengths and not self.runs_every_part:
            return self.vit_pos_embed(ids)
        if not lengths:
            # One blank patch, of which nothing is kept.
            patches, ids, lengths = patches.new_zeros(1, patches.shape[1]), ids.new_zeros(1), [1]
        # SigLIP's own learned table and ours are both indexed by the same grid ids.
        features = self.connector(self.vit_model(patches, ids, lengths)) + self.vit_pos_embed(ids)
        return features[: len(pack.vit_indexes)]

    def embed_latents(self, latents: Tensor, t: Tensor, position_ids: Tensor) -> Tensor:
        """Latent tokens [n, latent_dim] at times [n], or at one time [1], as decoder inputs [n, hidden]."""
        return self.vae2llm(latents.to(self.vae2llm.weight.dtype)) + self.time_embedder(t) + self.latent_pos_embed(position_ids)


def _expert_order(pack: PackedSequence) -> Tensor:
    """Sequence indexes [N] in the order of the experts."""
    return torch.cat([pack.text_indexes, pack.vit_indexes, pack.latent_indexes])
