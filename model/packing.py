"""Packing: several samples, each a list of texts and images, become one 1-D sequence.

Framing, positions and attention modes follow the published BAGEL/UniMedVL packer: a text split is
`bos + ids + eos` (causal); an image split is `<|vision_start|> + tokens + <|vision_end|>`, attended
in full, and hidden from everything outside it while it is noised.
"""

from dataclasses import dataclass, field, fields, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from model.config import ModelConfig
from model.positions import grid_ids
from model.preprocess import scaled
from model.vae import latent_to_tokens
from model.vit import patchify

CLEAN = float("-inf")  # the timestep draw of an image that is context, not target


@dataclass(frozen=True)
class TextItem:
    """One text turn. With `loss`, its tokens and the closing eos are predicted."""

    ids: list[int]
    loss: bool = False
    dropped: bool = False


@dataclass(frozen=True)
class ViTItem:
    """An image for understanding: pixels (3, H, W) in 8 bits or in [-1, 1], sides multiples of the ViT patch."""

    pixels: Tensor
    dropped: bool = False


@dataclass(frozen=True)
class VAEItem:
    """An image for generation: normalised latent (z, h, w). `draw` ~ N(0, 1) sets the noise level of a target."""

    latent: Tensor
    draw: float = CLEAN
    dropped: bool = False

    @property
    def loss(self) -> bool:
        return self.draw != CLEAN


Item = TextItem | ViTItem | VAEItem
Mode = Literal["causal", "full", "noise"]


@dataclass
class PackedSequence:
    """One packed batch of N tokens; `*_indexes` are places in the sequence.

    `pictures` are as their items hold them: they are cut into patches of `vit_patch_size` where they are looked at.
    `latents` [M, latent_dim] are clean; `timestep_draws` [M] are raw normal draws, `-inf` for context, and
    `target_rows` are the rows of both that carry a loss.
    `rope_ends` is the rotary counter after each sample, where generation continues.
    """

    text_ids: Tensor
    text_indexes: Tensor
    pictures: list[Tensor]
    vit_patch_size: int
    vit_indexes: Tensor
    vit_position_ids: Tensor
    vit_lengths: list[int]
    latents: Tensor
    latent_indexes: Tensor
    latent_position_ids: Tensor
    timestep_draws: Tensor
    target_rows: Tensor
    position_ids: Tensor
    ce_indexes: Tensor
    ce_labels: Tensor
    ce_weights: Tensor
    sample_lens: list[int]
    split_lens: list[int]
    attn_modes: list[Mode]
    rope_ends: list[int]

    @property
    def length(self) -> int:
        return len(self.position_ids)

    @property
    def vit_patches(self) -> Tensor:
        """[P, p*p*3] of all pictures, in 8 bits where all of them are: the eye scales them, on its own device."""
        return _patches(self.pictures, self.vit_lengths, self.vit_patch_size, self.position_ids.device)

    def to(self, device: torch.device | str) -> "PackedSequence":
        """The same pack on a device; the host does not wait for the copies."""
        tensors = {f.name: getattr(self, f.name) for f in fields(self) if isinstance(getattr(self, f.name), Tensor)}
        there = {name: tensor.to(device, non_blocking=True) for name, tensor in tensors.items()}
        return replace(self, pictures=[_sent(picture, device) for picture in self.pictures], **there)


def length_weight(length: int) -> float:
    """Weight of each token of a text of `length` loss tokens, where losses are reweighted by length."""
    return length**-0.5 if length else 0.0


def item_cost(item: Item, config: ModelConfig) -> int:
    """Sequence tokens an item takes, special tokens included."""
    if isinstance(item, TextItem):
        return len(item.ids) + 2
    if isinstance(item, ViTItem):
        return item.pixels.shape[1] * item.pixels.shape[2] // config.vit.patch_size**2 + 2
    return item.latent.shape[1] * item.latent.shape[2] // config.latent_patch_size**2 + 2


@dataclass
class _Packer:
    """A sequence that grows; what pictures have much of is kept in runs."""

    config: ModelConfig
    length: int = 0
    text_ids: list[int] = field(default_factory=list)
    text_indexes: list[int] = field(default_factory=list)
    pictures: list[Tensor] = field(default_factory=list)
    vit_lengths: list[int] = field(default_factory=list)
    vit_indexes: list[np.ndarray] = field(default_factory=list)
    vit_position_ids: list[Tensor] = field(default_factory=list)
    latents: list[Tensor] = field(default_factory=list)
    latent_indexes: list[np.ndarray] = field(default_factory=list)
    latent_position_ids: list[Tensor] = field(default_factory=list)
    timestep_draws: list[np.ndarray] = field(default_factory=list)
    position_ids: list[np.ndarray] = field(default_factory=list)
    ce_indexes: list[int] = field(default_factory=list)
    ce_labels: list[int] = field(default_factory=list)
    ce_weights: list[float] = field(default_factory=list)
    sample_lens: list[int] = field(default_factory=list)
    split_lens: list[int] = field(default_factory=list)
    attn_modes: list[Mode] = field(default_factory=list)
    rope_ends: list[int] = field(default_factory=list)
    rope: int = 0

    def add_sample(self, items: list[Item]) -> None:
        start, self.rope = self.length, 0
        for item in items:
            self._add_item(item)
        self.sample_lens.append(self.length - start)
        self.rope_ends.append(self.rope)

    def _add_item(self, item: Item) -> None:
        if isinstance(item, TextItem):
            if not item.dropped:
                self._add_text(item)
            return
        if not item.dropped:
            self._add_image(item)
        # A noised image lends its rotary id to what follows; context images, dropped ones too, use one up.
        self.rope += 0 if isinstance(item, VAEItem) and item.loss else 1

    def _add_text(self, item: TextItem) -> None:
        special = self.config.special_tokens
        tokens = [special.bos_token_id, *item.ids, special.eos_token_id]
        start = self.length
        self.text_ids.extend(tokens)
        self.text_indexes.extend(range(start, start + len(tokens)))
        if item.loss:
            self.ce_indexes.extend(range(start, start + len(tokens) - 1))
            self.ce_labels.extend(tokens[1:])
            self.ce_weights.extend([length_weight(len(tokens) - 1)] * (len(tokens) - 1))
        self._close_split(np.arange(self.rope, self.rope + len(tokens)), "causal")
        self.rope += len(tokens)

    def _add_image(self, item: ViTItem | VAEItem) -> None:
        start, special = self.length, self.config.special_tokens
        count = self._add_vit(item, start + 1) if isinstance(item, ViTItem) else self._add_latent(item, start + 1)
        self.text_ids.extend((special.start_of_image, special.end_of_image))
        self.text_indexes.extend((start, start + 1 + count))
        self._close_split(np.full(count + 2, self.rope), "noise" if isinstance(item, VAEItem) and item.loss else "full")

    def _add_vit(self, item: ViTItem, start: int) -> int:
        patch = self.config.vit.patch_size
        rows, columns = item.pixels.shape[1] // patch, item.pixels.shape[2] // patch
        count = rows * columns
        self.pictures.append(item.pixels)
        self.vit_lengths.append(count)
        self.vit_position_ids.append(grid_ids(rows, columns, self.config.vit_max_num_patch_per_side))
        self.vit_indexes.append(np.arange(start, start + count))
        return count

    def _add_latent(self, item: VAEItem, start: int) -> int:
        patch = self.config.latent_patch_size
        tokens = latent_to_tokens(item.latent, patch)
        rows, columns = item.latent.shape[1] // patch, item.latent.shape[2] // patch
        self.latents.append(tokens)
        self.latent_position_ids.append(grid_ids(rows, columns, self.config.max_latent_size))
        self.latent_indexes.append(np.arange(start, start + len(tokens)))
        self.timestep_draws.append(np.full(len(tokens), item.draw, dtype=np.float32))
        return len(tokens)

    def _close_split(self, position_ids: np.ndarray, mode: Mode) -> None:
        self.position_ids.append(position_ids)
        self.length += len(position_ids)
        self.split_lens.append(len(position_ids))
        self.attn_modes.append(mode)


def pack(samples: list[list[Item]], config: ModelConfig) -> PackedSequence:
    """Pack samples one behind another into a single sequence."""
    packer = _Packer(config)
    for items in samples:
        packer.add_sample(items)
    timestep_draws = _joined(packer.timestep_draws, np.float32)
    return PackedSequence(
        text_ids=_numbers(packer.text_ids),
        text_indexes=_numbers(packer.text_indexes),
        pictures=packer.pictures,
        vit_patch_size=config.vit.patch_size,
        vit_indexes=_joined(packer.vit_indexes),
        vit_position_ids=_cat_ids(packer.vit_position_ids),
        vit_lengths=packer.vit_lengths,
        latents=torch.cat(packer.latents) if packer.latents else torch.zeros(0, config.latent_dim),
        latent_indexes=_joined(packer.latent_indexes),
        latent_position_ids=_cat_ids(packer.latent_position_ids),
        timestep_draws=timestep_draws,
        target_rows=(timestep_draws != CLEAN).nonzero().flatten(),
        position_ids=_joined(packer.position_ids),
        ce_indexes=_numbers(packer.ce_indexes),
        ce_labels=_numbers(packer.ce_labels),
        ce_weights=torch.tensor(packer.ce_weights),
        sample_lens=packer.sample_lens,
        split_lens=packer.split_lens,
        attn_modes=packer.attn_modes,
        rope_ends=packer.rope_ends,
    )


def _sent(picture: Tensor, device: torch.device | str) -> Tensor:
    """The picture (3, H, W) on a device; a grey one goes there once, not three times."""
    if picture.stride(0) == 0:
        return picture[:1].to(device, non_blocking=True).expand_as(picture)
    return picture.to(device, non_blocking=True)


def _patches(pictures: list[Tensor], lengths: list[int], side: int, device: torch.device) -> Tensor:
    """Patches of all pictures, scaled where some picture already is."""
    if any(picture.is_floating_point() for picture in pictures):
        pictures = [scaled(picture) for picture in pictures]
    made = torch.empty(sum(lengths), 3 * side**2, dtype=pictures[0].dtype if pictures else None, device=device)
    for picture, place in zip(pictures, made.split(lengths)):
        patchify(picture, side, out=place)
    return made


def _numbers(values: list[int]) -> Tensor:
    """[n] int64; by way of numpy in a quarter of the time."""
    return torch.from_numpy(np.array(values, dtype=np.int64))


def _joined(runs: list[np.ndarray], dtype: type = np.int64) -> Tensor:
    """[n] of all runs, one behind another."""
    return torch.from_numpy(np.concatenate(runs, dtype=dtype) if runs else np.zeros(0, dtype=dtype))


def _cat_ids(ids: list[Tensor]) -> Tensor:
    return torch.cat(ids) if ids else torch.zeros(0, dtype=torch.long)
