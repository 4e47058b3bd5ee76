"""Image sampling: Euler steps along the learned velocity, with text and image guidance in one batch."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from model.attention import Block, Layout
from model.config import SamplingConfig
from model.generate import Context, prefill
from model.packing import Item, TextItem
from model.positions import grid_ids
from model.vae import tokens_to_latent

if TYPE_CHECKING:
    from model.unimedvl import UniMedVL


@dataclass(frozen=True)
class Guidance:
    """Scales, and the part of t in (low, high] where they apply; `renorm` as published."""

    steps: int
    shift: float
    text: float
    image: float
    interval: tuple[float, float]
    renorm: str
    renorm_min: float = 0.0


def settings(config: SamplingConfig, has_images: bool, steps: int | None, text: float | None, image: float | None) -> Guidance:
    """The profile's defaults for drawing (no input image) or editing, with the caller's overrides.

    Raises:
        ValueError: fewer than two steps, which make no move, or a guidance that is no finite number.
    """
    if steps is not None and steps < 2:
        raise ValueError(f"steps={steps}: the shortest schedule has 2")
    for name, scale in (("guidance", text), ("image_guidance", image)):
        if scale is not None and not math.isfinite(scale):
            raise ValueError(f"{name}={scale} is no finite number")
    chosen = Guidance(config.steps, config.timestep_shift, config.text_guidance, config.draw_image_guidance, config.draw_interval, "global")
    if has_images:
        chosen = replace(chosen, text=config.edit_text_guidance, image=config.edit_image_guidance, interval=(0.0, 1.0), renorm="text_channel")
    overrides = {"steps": steps, "text": text, "image": image if has_images else None}
    return replace(chosen, **{key: value for key, value in overrides.items() if value is not None})


def schedule(steps: int, shift: float) -> Tensor:
    """[steps] times from 1 to 0, shifted; the loop makes steps - 1 moves."""
    t = torch.linspace(1, 0, steps)
    return shift * t / (1 + (shift - 1) * t)


def sample(model: "UniMedVL", contexts: list[list[Item]], noise: Tensor, grid: tuple[int, int], guidance: Guidance) -> Tensor:
    """Latent tokens [b, rows*columns, latent_dim] from noise of the same shape."""
    *_, final = trajectory(model, contexts, noise, grid, guidance)
    return final


def trajectory(model: "UniMedVL", contexts: list[list[Item]], noise: Tensor, grid: tuple[int, int], guidance: Guidance) -> Iterator[Tensor]:
    """x before each move, and at last the result: each [b, rows*columns, latent_dim].

    Contexts of the guidance branches are read once and denoised together as one batch.
    """
    branches = [contexts]
    if guidance.text > 1:
        branches.append([_before_last_text(items) for items in contexts])
        if guidance.image > 1 and any(not isinstance(item, TextItem) for items in contexts for item in items):
            branches.append([_texts_only(items) for items in contexts])
    block = grid[0] * grid[1] + 2
    context = prefill(model, [items for branch in branches for items in branch], block)
    query = QueryBlock(model, context, grid)
    x, times = noise, schedule(guidance.steps, guidance.shift)
    for t, following in zip(times, times[1:]):
        yield x
        guided = guidance.interval[0] < t <= guidance.interval[1] and len(branches) > 1
        velocities = query.velocity(x, t, len(branches) if guided else 1)
        x = x - (combine(velocities, guidance) if guided else velocities[0]) * (t - following)
    yield x


def combine(velocities: Tensor, guidance: Guidance) -> Tensor:
    """Guided velocity [b, n, d] of the branches [2 or 3, b, n, d]: conditional, without text, without image.

    Where there is no image to leave out, the conditional branch is the one without image.
    """
    conditional, without_text = velocities[0], velocities[1]
    text = without_text + guidance.text * (conditional - without_text)
    if guidance.renorm == "text_channel":
        text = _renormed(text, conditional, (-1,), guidance.renorm_min)
    without_image = velocities[2] if len(velocities) == 3 else conditional
    guided = without_image + guidance.image * (text - without_image) if guidance.image > 1 else text
    if guidance.renorm == "text_channel":
        return guided
    # `global` is meant for an image as a whole: the norm runs over its tokens, never over the batch.
    dims = (-2, -1) if guidance.renorm == "global" else (-1,)
    return _renormed(guided, conditional, dims, guidance.renorm_min)


def _renormed(velocity: Tensor, conditional: Tensor, dims: tuple[int, ...], least: float) -> Tensor:
    scale = conditional.norm(dim=dims, keepdim=True) / (velocity.norm(dim=dims, keepdim=True) + 1e-8)
    return velocity * scale.clamp(least, 1.0)


def to_latent(model: "UniMedVL", tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """[b, n, latent_dim] to normalised latents [b, z, h, w]."""
    return tokens_to_latent(tokens, *grid, model.config.latent_patch_size)


def _before_last_text(items: list[Item]) -> list[Item]:
    last = max((i for i, item in enumerate(items) if isinstance(item, TextItem)), default=len(items))
    return items[:last]


def _texts_only(items: list[Item]) -> list[Item]:
    return [item for item in items if isinstance(item, TextItem)]


class QueryBlock:
    """Start token, latents, end token of every row, read against the cached contexts at each step.

    The block is written behind the longest context and overwritten at the next step, so the contexts'
    keys and values are computed once and never copied.
    """

    def __init__(self, model: "UniMedVL", context: Context, grid: tuple[int, int]):
        self.model, self.context = model, context
        count, rows = grid[0] * grid[1], context.rows
        self.width = count + 2
        row = torch.arange(rows)[:, None] * self.width
        framing, latents = row + torch.tensor([0, count + 1]), row + torch.arange(1, count + 1)
        self.slots = (framing.to(model.device), latents.to(model.device))
        self.mask = context.mask.expand(-1, 1, self.width, -1)
        special = model.config.special_tokens
        self.frame = torch.tensor([special.start_of_image, special.end_of_image], device=model.device)
        self.positions = grid_ids(*grid, model.config.max_latent_size).to(model.device)

    @torch.inference_mode()
    def velocity(self, x: Tensor, t: Tensor, branches: int) -> Tensor:
        """[branches, b, n, latent_dim] at x [b, n, latent_dim], the same x for every branch."""
        images, count, _ = x.shape
        rows = images * branches
        latents = x.repeat(branches, 1, 1).flatten(0, 1)
        tokens = self.model.embed_latents(latents, t.to(x.device).view(1), self.positions.repeat(rows))
        hidden = torch.cat([self.model.embed_text(self.frame.repeat(rows)), tokens])
        slots = torch.cat([part[:rows].flatten() for part in self.slots])
        layout = Layout([Block(rows, self.width, self.mask[:rows])], slots, 2 * rows)
        ropes = torch.cat([self.context.ropes[:rows].repeat_interleave(2), self.context.ropes[:rows].repeat_interleave(count)])
        hidden = self.model.language_model(hidden, ropes, layout, self.context.cache, self.context.end)
        return self.model.llm2vae(hidden[2 * rows :]).view(branches, images, count, -1)
